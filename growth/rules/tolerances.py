"""How far logits may move in a growth step. Every check of one asks here.

All are the largest difference of logits, relative to the largest logit before.
"""

# What growth promises, by the dtype of the parameters. bfloat16 promises nothing: its difference is
# the rounding of what is multiplied.
PROMISED = {"float64": 1e-12, "float32": 1e-5}

# A model may compute in less than the dtype of its parameters, such as norms in float32 among
# float64. So much larger than its own rounding a difference may be: that is measured where its
# units are summed in another order, which changes nothing else. More than the bound is no rounding.
ROUNDING_MARGIN = 3
LARGEST_ROUNDING = 1e-5

# By the dtype of the parameters, where logits are computed in float32: what is multiplied is
# rounded to that dtype, in each layer anew.
MEASURED_IN_FLOAT32 = {"float64": 1e-5, "float32": 1e-5, "float16": 1e-1, "bfloat16": 1e-1}

# The same for the models of transformers, whose float32 is rougher: a growth of the rotary base
# shows as 1e-7 of the position, and positions may be thousands.
MEASURED_BY_TRANSFORMERS = {"float64": 1e-3, "float32": 1e-3, "float16": 1e-1, "bfloat16": 1e-1}
