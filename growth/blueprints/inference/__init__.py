"""Guessing a blueprint: names propose, shapes and the architecture confirm.

`paths` sorts the arrays of a tree into kinds, `names` says what each may be by its name, `readings`
which axes fit its shape, and `demands` which of all that an architecture can have. What one reading
is left of is sure. What is open is tried out where the model's function is at hand: `trials`.
"""
