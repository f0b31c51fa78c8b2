"""Growth of a checkpoint of a run, for `growth plan` and `growth expand`."""

from growth.cli.checkpoint_growth import show
from growth.cli.flags import Expand, Plan
from growth.training.formatting import format_power
from growth.training.offline import RunExpansion, expand_run, plan_run
from growth.training.schedule import training_flops


def plan(flags: Plan) -> None:
    """Shows what would be."""
    _planned(flags)
    print("nothing is written")


def expand(flags: Expand) -> None:
    """Writes the larger run."""
    expansion = _planned(flags)
    difference = expand_run(expansion, flags.output, seed=flags.seed)
    print(f"logits in float32, largest difference / largest logit: {difference:.1e}")
    print(f"written: {flags.output}; its config.py trains it on from step {expansion.step:,}")


def _planned(flags: Plan | Expand) -> RunExpansion:
    options = dict(init=flags.init or "fresh", moments=flags.moments or "zeros")
    growth = flags.sizes.growth_step() | options
    tolerance = flags.growth_tolerance if isinstance(flags, Expand) else None
    expansion = plan_run(str(flags.source), growth, flags.step, growth_tolerance=tolerance)
    plan = expansion.plan
    rows = [(name, str(old), str(new)) for name, (old, new) in plan.changes.items()]
    counts = [f"{arch.num_parameters:,}" for arch in (plan.source, plan.target)]
    flops = [f"{arch.training_flops_per_token() / 3:.3g}" for arch in (plan.source, plan.target)]
    show([*rows, ("parameters", *counts), ("FLOPs per token", *flops)], plan)
    print(_ahead(expansion))
    return expansion


def _ahead(expansion: RunExpansion) -> str:
    """How long the run that comes of it would train on, in words."""
    config, stage = expansion.config, expansion.stage
    *before, after = training_flops(config.stages, config.tokens_per_step)
    return (
        f"trains on from step {stage.start:,} to {stage.stop:,}: {stage.num_steps:,} more steps, "
        f"{format_power(after)} FLOPs, {after / (sum(before) + after):.0%} of the run's; "
        f"--config.num_steps=N of growth train says otherwise"
    )
