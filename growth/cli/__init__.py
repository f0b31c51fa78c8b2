"""Commands: flags in, functions called, nothing else.

`flags` says which flags each command has, and is all that `--help` opens. A module of a command's
name runs it: `run` takes its flags and gives the exit code.
"""
