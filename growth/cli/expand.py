"""Grows a checkpoint that is there: of Hugging Face, or of a run of growth.cli.train.

    python -m growth.cli.expand --source=DIR --output=DIR --embed_dim=768 --num_layers=34
    python -m growth.cli.expand --source=runs/quickstart --output=runs/larger --mlp_dim=512

The result computes the same function. It appears when it is whole; the source is left as it is.
Give only what should grow; `--plan_only` shows what would be, and writes nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from growth.cli import errors
from growth.errors import InputError
from growth.huggingface import CheckpointExpansion, execute_expansion, plan_expansion
from growth.huggingface.expansion.model_card import comparison
from growth.huggingface.expansion.verification import unmet_requirement
from growth.huggingface.expansion.writing import estimated_seconds
from growth.rules.growth_plan import GrowthPlan
from growth.training.offline import expand_run, is_run, plan_run

_SOURCE = flags.DEFINE_string("source", None, "The directory of the checkpoint.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The directory to write; it must not exist.")
_SIZES = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
for _name in _SIZES:
    flags.DEFINE_integer(_name, None, f"{_name} of the larger model; as it is if not given.")
flags.DEFINE_integer("qk_dim", None, "Width of queries and keys alone, where a model has it.")
flags.DEFINE_integer("v_dim", None, "Width of values alone, where a model has it.")
_POSITIONS = flags.DEFINE_list(
    "layer_positions",
    None,
    "Where new layers go: an index for each, counted in the old layers. Evenly if not given.",
)
_INIT = flags.DEFINE_string(
    "init", "fresh", "New entries that may be anything: fresh, copy or copy:SIGNAL_TO_NOISE."
)
_SEED = flags.DEFINE_integer("seed", 0, "Decides them.")
_PLAN_ONLY = flags.DEFINE_bool("plan_only", False, "Show what would be, and write nothing.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16", "float64"], "Of Hugging Face tensors."
)
_SHARD = flags.DEFINE_string("max_shard_size", "5GB", "Of Hugging Face files.")
_VERIFY = flags.DEFINE_bool(
    "verify", None, "Whether transformers compares both; if it can, where this is not given."
)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a run; the newest if not given.")
_MOMENTS = flags.DEFINE_enum(
    "moments", "zeros", ["zeros", "mean", "age"], "How second moments of a run's new entries begin."
)


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options begin with --")
    logging.set_verbosity(logging.WARNING)
    with errors.reported():
        if not _OUTPUT.value and not _PLAN_ONLY.value:
            raise InputError("output is needed, unless with --plan_only")
        given = {name: flags.FLAGS[name].value for name in (*_SIZES, "qk_dim", "v_dim")}
        sizes = {name: size for name, size in given.items() if size is not None}
        if _POSITIONS.value is not None:
            sizes["layer_positions"] = _positions(_POSITIONS.value)
        if is_run(_SOURCE.value):
            _expand_run(sizes)
        else:
            _expand_checkpoint(sizes)


def _expand_checkpoint(sizes: dict[str, Any]) -> None:
    """Grows a checkpoint of Hugging Face."""
    expansion = plan_expansion(
        _SOURCE.value,
        init=_INIT.value,
        seed=_SEED.value,
        dtype=_DTYPE.value,
        max_shard_size=_SHARD.value,
        **sizes,
    )
    _show(comparison(expansion), expansion.plan)
    if _PLAN_ONLY.value:
        seconds = estimated_seconds(expansion)
        print(f"about {seconds:,.0f} s on this machine, if its disk keeps up; nothing is written")
        return
    assert _OUTPUT.value is not None
    with _progress() as bar:
        task = bar.add_task("grow", total=expansion.bytes, what="")
        verified = execute_expansion(
            expansion,
            _OUTPUT.value,
            verify=_VERIFY.value,
            progress=lambda done, total, name: bar.update(task, completed=done, what=name),
        )
    print(verified or f"not verified: {_why_not(expansion, Path(_OUTPUT.value))}")
    print(f"written: {_OUTPUT.value}")


def _expand_run(sizes: dict[str, Any]) -> None:
    """Grows a checkpoint of a run."""
    width = sizes.pop("head_dim", None)
    if width is not None:
        sizes |= dict(qk_dim=width, v_dim=width)
    if "layer_positions" in sizes:
        sizes["position"] = tuple(sizes.pop("layer_positions"))
    growth = sizes | dict(init=_INIT.value, moments=_MOMENTS.value)
    expansion = plan_run(_SOURCE.value, growth, _STEP.value)
    plan = expansion.plan
    rows = [(name, str(old), str(new)) for name, (old, new) in plan.changes.items()]
    counts = [f"{arch.num_parameters:,}" for arch in (plan.source, plan.target)]
    flops = [f"{arch.training_flops_per_token() / 3:.3g}" for arch in (plan.source, plan.target)]
    _show([*rows, ("parameters", *counts), ("FLOPs per token", *flops)], plan)
    if _PLAN_ONLY.value:
        print("nothing is written")
        return
    assert _OUTPUT.value is not None
    difference = expand_run(expansion, _OUTPUT.value, seed=_SEED.value)
    print(f"logits in float32, largest difference / largest logit: {difference:.1e}")
    print(f"written: {_OUTPUT.value}; its config.py trains it on from step {expansion.step:,}")


def _why_not(expansion: CheckpointExpansion, output: Path) -> str:
    if _VERIFY.value is False:
        return "--noverify"
    return (
        unmet_requirement(expansion, output.absolute().parent)
        or "nothing kept it from being verified"
    )


def _positions(texts: list[str]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise InputError(f"layer_positions is {texts}, but it must be indices of layers") from error


def _show(rows: Sequence[tuple[str, ...]], plan: GrowthPlan) -> None:
    table = Table("", "before", "after", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    new = [str(index) for index, origin in enumerate(plan.layer_sources) if origin is None]
    if new:
        print(f"new layers at {', '.join(new)}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    app.run(main)
