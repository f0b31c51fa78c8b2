"""Growth of a checkpoint of a run, for `growth plan` and `growth expand`."""

from growth.cli.checkpoint_growth import show
from growth.cli.flags import Expand, Plan
from growth.training.offline import RunExpansion, expand_run, plan_run


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
    return expansion
