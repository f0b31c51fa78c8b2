"""`growth`: parses a command line, and calls what it names.

Until a command really runs nothing heavy is opened, so that help is there at once.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Annotated, Any

import docstring_parser
from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

import growth
from growth.cli import config_files, config_help, config_overrides, errors, flags
from growth.errors import InputError

COMMANDS: dict[str, type] = {
    "train": flags.Train,
    "plan": flags.Plan,
    "expand": flags.Expand,
    "certify": flags.Certify,
    "sample": flags.Sample,
    "report": flags.Report,
    "export": flags.Export,
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command; gives its exit code.

    Args:
      arguments: the command and its flags.
    """
    with errors.reported():
        chosen = parse(arguments)
        if chosen is None:
            return 0
        return _run(chosen)


def parse(arguments: Sequence[str]) -> Any:
    """The flags of a command, as one of the dataclasses of `COMMANDS`.

    None where the arguments ask for help or for the version, which is then printed.

    Raises:
      InputError: there is no such command, a flag is unknown, wrong, or missing.
    """
    overrides, arguments = config_overrides.split(arguments)
    app = _app()
    try:
        function, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    except MissingArgumentError as error:
        raise InputError(_missing(error)) from error
    except CycloptsError as error:
        raise InputError(" ".join(str(error).split())) from error
    result = function(*bound.args, **bound.kwargs)
    if not isinstance(result, tuple(COMMANDS.values())):  # help was printed
        if set(arguments[:1]) & {"train", "plan"}:
            config_help.show()
        return None
    if isinstance(result, flags.Train | flags.Plan):
        return dataclasses.replace(result, overrides=overrides)
    if overrides:
        raise InputError(f"{overrides[0]} is for growth train and growth plan alone")
    return result


def _app() -> App:
    app = App(
        name="growth",
        help="Trains transformers, and grows them without changing what they compute.",
        version=lambda: growth.__version__,
        default_parameter=Parameter(
            name_transform=str, negative_bool="no", negative_iterable=(), negative_none=()
        ),
    )
    for place, (name, kind) in enumerate(COMMANDS.items()):
        app.command(_returning(kind), name=name, sort_key=place)
    return app


def _returning(kind: type) -> Any:
    """A function with the flags of a dataclass, which it gives back."""

    def command(*, given: Any) -> Any:
        return given

    def command_of_runs(*runs: Any, given: Any) -> Any:
        return dataclasses.replace(given, runs=runs)

    names = {field.name for field in dataclasses.fields(kind)}
    chosen = command_of_runs if "runs" in names else command
    chosen.__annotations__ = {
        "runs": Annotated[str, Parameter(help="Directories of runs.")],
        "given": Annotated[kind, Parameter(name="*")],
    }
    if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind)):
        chosen.__kwdefaults__ = {"given": kind()}
    chosen.__doc__ = kind.__doc__
    return chosen


def _missing(error: MissingArgumentError) -> str:
    """The message for a flag that must be given."""
    assert error.argument is not None
    assert error.command_chain
    command, flag = error.command_chain[-1], error.argument.name
    written = [token.partition("=")[0] for token in error.unused_tokens or ()]
    near = difflib.get_close_matches(flag, written, 1)
    if near:
        return f"growth {command} has no {near[0]}; did you mean {flag}?"
    docstring = docstring_parser.parse(COMMANDS[command].__doc__ or "")
    about = {entry.args[1]: entry.description or "" for entry in docstring.meta}
    words = " ".join(about[flag.removeprefix("--")].split())
    more = f" Presets are {', '.join(config_files.presets())}." if flag == "--config" else ""
    return f"growth {command} needs {flag}: {words[:1].lower()}{words[1:]}{more}"


def _run(chosen: Any) -> int:
    from absl import logging

    # What libraries tell is not what a command says: what fails is raised.
    logging.set_verbosity(logging.FATAL)
    match chosen:
        case flags.Train():
            from growth.cli import train

            return train.run(chosen)
        case flags.Plan():
            from growth.cli import plan

            return plan.run(chosen)
        case flags.Expand():
            from growth.cli import expand

            return expand.run(chosen)
        case flags.Certify():
            from growth.cli import certify

            return certify.run(chosen)
        case flags.Sample():
            from growth.cli import sample

            return sample.run(chosen)
        case flags.Report():
            from growth.cli import report

            return report.run(chosen)
        case flags.Export():
            from growth.cli import export

            return export.run(chosen)
    raise TypeError(f"{type(chosen).__name__} is of no command")
