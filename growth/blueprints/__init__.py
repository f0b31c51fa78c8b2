"""Which parameter of a model has which role and axes."""
