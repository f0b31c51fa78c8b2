"""Names for what is passed around: type aliases that say what a value is meant as.

A tree of parameters is any pytree of arrays, so that a type checker cannot tell one from another;
a reader can.
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray

# A pytree of arrays: the parameters of a model.
Params = Any

# A pytree of arrays, shaped like parameters: gradients, moments, averages, masks.
ParamsLike = Any

# The state of an optax transformation.
OptState = Any

# What a model is given: int tokens [batch, length], images [batch, height, width, channels], or a
# tree of such arrays.
Inputs = Any
