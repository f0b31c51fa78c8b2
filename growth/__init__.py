"""growth: grow transformers while they train, without changing what they compute.

Everything here opens when it is first used: `import growth` imports neither JAX nor Flax.
"""

import importlib

import lazy_loader

from growth.blueprints.inference import trials

# __init__.pyi names what opens, for this and for type checkers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

trials.register(lambda: importlib.import_module("growth.certification.trial").try_out)
