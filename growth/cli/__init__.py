"""Commands: flags in, functions called, nothing else."""
