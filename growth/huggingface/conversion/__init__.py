"""A checkpoint as parameters of the reference model, and back: the same numbers, other axes."""
