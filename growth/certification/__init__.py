"""Proofs that a growth step kept the function, and that what is new can learn."""
