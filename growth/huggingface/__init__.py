"""Hugging Face checkpoints: grown as they are, or loaded into the reference model and back.

Everything here opens when it is first used: to import this imports neither JAX, torch, transformers
nor safetensors.
"""

import lazy_loader

# __init__.pyi names what opens, for this and for type checkers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
