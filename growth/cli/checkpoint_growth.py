"""Growth of a checkpoint that is there, planned and shown: of a run, or of Hugging Face."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from growth.cli.flags import Expand, Plan
from growth.errors import InputError
from growth.huggingface.checkpoint_files import check_directory
from growth.rules.growth_plan import GrowthPlan

# Flags that apply to one kind of checkpoint alone.
OF_RUNS = ("step", "moments", "growth_tolerance")
OF_HUGGING_FACE = ("dtype", "max_shard_size", "verify", "ignore_config_keys")


def is_run(source: str) -> bool:
    """Whether a directory is that of a run.

    Raises:
      InputError: there is no such directory.
    """
    check_directory(source)
    return (Path(source) / "checkpoints").is_dir()


def refuse_flags_of_others(flags: Expand | Plan) -> None:
    """Refuses the flags that the kind of checkpoint does not have.

    Raises:
      InputError: one was given, whatever its value; or there is no such directory.
    """
    assert flags.source is not None
    run = is_run(flags.source)
    given = [
        f"--{name}"
        for name in (OF_HUGGING_FACE if run else OF_RUNS)
        if getattr(flags, name, None) is not None
    ]
    if given:
        applies = "applies" if len(given) == 1 else "apply"
        there, here = ("Hugging Face", "that of a run") if run else ("a run", "none of a run")
        raise InputError(
            f"{', '.join(given)} {applies} to a checkpoint of {there}, but {flags.source} is {here}"
        )


def show(rows: Sequence[tuple[str, ...]], plan: GrowthPlan) -> None:
    """Prints sizes and costs before and after, and where new layers go."""
    table = Table("", "before", "after", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    new = [str(index) for index, origin in enumerate(plan.layer_sources) if origin is None]
    if new:
        print(f"new layers at {', '.join(new)}")
