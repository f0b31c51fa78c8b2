"""`growth` and `python -m growth`: the commands of `growth.cli`, or one line on what they lack."""

import sys

# What the extra "train" brings. Libraries of other extras are asked for where they are opened.
BY_TRAIN = {
    "annotated_types",
    "cyclopts",
    "docstring_parser",
    "grain",
    "matplotlib",
    "ml_collections",
    "orbax",
    "pydantic",
    "rich",
    "tensorboardX",
}


def main() -> int:
    """Runs the command that the process was started with; gives its exit code."""
    try:
        from growth.cli.main import main

        return main(sys.argv[1:])
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in BY_TRAIN:
            raise
        command = " ".join(["growth", *sys.argv[1:2]])
        print(
            f"error: {command} needs {library}, which is not installed: "
            "pip install 'flax-growth[train]'",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
