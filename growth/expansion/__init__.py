"""Arrays of a smaller model to those of a larger one."""
