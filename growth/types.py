"""Names for what is passed around: type aliases that say what a value is meant as.

A type checker cannot tell one pytree from another; a reader can. What jaxtyping is told of shapes
and dtypes is checked while the tests run: axes of one name have one size within a call.
"""

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

Array = jax.Array | np.ndarray

# The parameters of a model.
Params = PyTree[Array]

# Shaped like parameters, or with a leaf for each: gradients, moments, averages, masks, shapes, the
# names of axes.
ParamsLike = PyTree

# The state of an optax transformation, or with a leaf for each of its leaves.
OptState = PyTree

Tokens = Int[Array, "batch length"]

Images = Float[Array, "batch height width channels"]

# What a model is given: tokens, images, or whatever a model of one's own takes.
Inputs = PyTree[Array]

# Of the next token at each position, or of the classes of images.
Logits = Float[jax.Array, "batch length vocab"] | Float[jax.Array, "batch classes"]
