"""growth: grow transformers while they train, without changing what they compute.

Everything here opens when it is first used: `import growth` imports neither JAX nor Flax.
"""

import lazy_loader

# __init__.pyi names what opens, for this and for type checkers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
