"""Training with a growth schedule, on a mesh.

Everything here opens when it is first used, so that what needs no data, no checkpoints and no
figures, such as `growth.training.schedule`, does not wait for their libraries.
"""

import lazy_loader

# __init__.pyi names what opens, for this and for type checkers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
