"""Which run it is: when and by what it was started, on what, with what, and where its time went."""

from growth.training.config import TrainConfig
from growth.training.formatting import format_count, format_duration
from growth.training.report.html import facts
from growth.training.report.records import RunRecords, last


def about_run(run: RunRecords) -> str:
    """The section of a report that says which run it is, as HTML."""
    config, starts = run.config, run.of("start")
    told = {"seed": str(config.seed), "batch": _batch(config), "optimizer": _optimizer(config)}
    if starts:
        first, *later = starts
        dates = [str(first.get("date"))]
        dates += [f"resumed after step {r['step']:,}: {r.get('date')}" for r in later]
        newest = starts[-1]
        versions = newest.get("versions", {})
        told = {
            "started": "; ".join(dates),
            "command": str(newest.get("command")),
            "data": str(newest.get("data")),
            **told,
            "devices": str(newest.get("devices")),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
    told["precision"] = f"{config.dtype} computation, {config.param_dtype} parameters"
    told["mesh"] = f"data {config.mesh.data}, fsdp {config.mesh.fsdp}, tensor {config.mesh.tensor}"
    if time := _time(run):
        told["time"] = time
    shown = {name: text for name, text in told.items() if text}
    return facts(shown)


def _batch(config: TrainConfig) -> str:
    what = "images" if config.architecture.patches else "sequences"
    return (
        f"{config.batch_size} {what} of {config.architecture.max_length} tokens: "
        f"{format_count(config.tokens_per_step)} tokens a step"
    )


def _optimizer(config: TrainConfig) -> str:
    settings = config.optimizer
    return (
        f"AdamW, learning rate {settings.learning_rate:g}, warm-up over {config.warmup_steps} "
        f"steps, decay over the last {settings.decay:.0%} of the FLOPs, β {settings.b1:g} and "
        f"{settings.b2:g}, weight decay {settings.weight_decay:g}, clipping at "
        f"{settings.clip_norm:g}"
    )


def _time(run: RunRecords) -> str:
    """Where the run's time went, the largest part first."""
    total = last(run.of("train"), "seconds")
    clocks = [record["clock"] for record in run.of("train") if record.get("clock")]
    if not total or not clocks:
        return ""
    spent = {name: seconds for name, seconds in clocks[-1].items() if seconds}
    spent["all else"] = max(total - sum(spent.values()), 0.0)
    parts = sorted(spent.items(), key=lambda part: -part[1])
    words = ", ".join(
        f"{name} {format_duration(seconds)} ({seconds / total:.0%})" for name, seconds in parts
    )
    return f"{format_duration(total)}: {words}"
