"""Growth of a checkpoint of Hugging Face, for `growth plan` and `growth expand`."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from growth.cli.checkpoint_growth import show
from growth.cli.flags import Expand, Plan
from growth.huggingface import CheckpointExpansion, execute_expansion, plan_expansion
from growth.huggingface.companion_files import summary
from growth.huggingface.expansion.model_card import comparison
from growth.huggingface.expansion.verification import why_not_verified
from growth.huggingface.expansion.writing import estimated_seconds


def plan(flags: Plan) -> None:
    """Shows what would be."""
    expansion = _planned(flags, init=flags.init or "fresh")
    seconds = estimated_seconds(expansion)
    print(f"about {seconds:,.0f} s on this machine, if its disk keeps up; nothing is written")


def expand(flags: Expand) -> None:
    """Writes the larger checkpoint."""
    expansion = _planned(
        flags,
        init=flags.init,
        seed=flags.seed,
        max_shard_size=flags.max_shard_size or "5GB",
    )
    with _progress() as bar:
        task = bar.add_task("grow", total=expansion.bytes, what="")
        verified = execute_expansion(
            expansion,
            flags.output,
            verify=flags.verify,
            progress=lambda done, total, name: bar.update(task, completed=done, what=name),
        )
    if verified:
        print(verified)
    print(f"written: {flags.output}")
    if not verified:
        print(why_not_verified(expansion, flags.verify))


def _planned(flags: Plan | Expand, **options: Any) -> CheckpointExpansion:
    step = flags.sizes.growth_step()
    if "position" in step:
        step["layer_positions"] = step.pop("position")
    ignored = (flags.ignore_config_keys or "").split(",")
    expansion = plan_expansion(
        str(flags.source), dtype=flags.dtype, ignore_config_keys=ignored, **step, **options
    )
    show(comparison(expansion), expansion.plan)
    for fate, names in summary(expansion.source.files).items():
        print(f"{fate}: {names}")
    for note in expansion.source.notes:
        print(f"note: {note}")
    return expansion


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
        console=Console(stderr=True),
    )
