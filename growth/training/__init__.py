"""Training with a growth schedule, on a mesh."""
