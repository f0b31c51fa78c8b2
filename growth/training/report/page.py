"""The report of a run: one self-contained HTML file, made from the stages and the records."""

import itertools
import json
import math
import os
import string
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from growth.architecture import Architecture
from growth.files import write_atomically
from growth.training.config import TrainConfig
from growth.training.formatting import format_count, format_duration
from growth.training.report import plots
from growth.training.report.about import about_run
from growth.training.report.html import MISSING, Cell, item, power, show, sizes, table
from growth.training.report.metrics import Record, Records
from growth.training.report.records import AXES, RunRecords, last, values
from growth.training.schedule import Stage

# Architecture fields that the table of the stages shows, and what it calls them.
_SHOWN_FIELDS = {
    "num_layers": "layers",
    "embed_dim": "embed",
    "num_heads": "heads",
    "num_kv_heads": "kv heads",
    "qk_dim": "qk",
    "v_dim": "v",
    "mlp_dim": "mlp",
}


def write_report(
    workdir: str | os.PathLike[str],
    *,
    title: str,
    config: TrainConfig,
    records: Records,
    description: str = "",
) -> Path:
    """Writes `report.html`: which run it is, and what it did, in figures, tables and samples.

    The run may be unfinished, and may lack any kind of record; what cannot be known is left out or
    shown as a dash.

    Args:
      workdir: where the report goes; made if missing.
      title: the page's heading.
      config: the run.
      records: the run's records, as `growth.training.metrics.read_metrics` gives them.
      description: plain text below the heading.

    Returns:
      The path of the report.

    Examples:
      >>> from growth import training
      >>> _, _, config = training.load_model("runs/small")
      >>> records = training.read_metrics("runs/small/metrics.jsonl")
      >>> training.write_report("report", title="Small", config=config, records=records).name
      'report.html'

    References:
      The documentation of matplotlib, which draws its figures.
    """
    run = RunRecords(title, config, records)
    sections = {
        "Loss": _loss_figures(run),
        "Over steps": _step_figures(run),
        "Stages": _stage_table(run),
        "Preservation": _growth_table(run),
        "Run": about_run(run),
        "Samples": _samples(run),
        "Config": _folded(run),
    }
    path = Path(workdir) / "report.html"
    text = f'<p class="description">{escape(description)}</p>' if description else ""
    write_page(path, title, _status(run), _headline(run), sections, text)
    return path


def write_page(
    path: Path,
    title: str,
    status: str,
    headline: Iterable[str],
    sections: Mapping[str, str],
    description: str = "",
) -> None:
    """Writes a page, whole or not at all.

    Args:
      path: the file.
      title: its heading, as plain text.
      status: plain text below that.
      headline: the numbers that matter most, as HTML.
      sections: HTML under its headings; an empty one is left out.
      description: HTML below the status.
    """
    template = resources.files("growth.training.report").joinpath("template.html")
    page = string.Template(template.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        status=escape(status),
        description=description,
        headline="\n".join(headline),
        sections="\n".join(
            f"<section>\n<h2>{heading}</h2>\n{body}\n</section>"
            for heading, body in sections.items()
            if body
        ),
    )
    write_atomically(path, page)


# The parts of the page.


def _status(run: RunRecords) -> str:
    stages, stop = run.stages, run.config.num_steps
    if run.step < stop:
        stage = run.reached[-1].index + 1
        return f"Not finished: step {run.step:,} of {stop:,}, in stage {stage} of {len(stages)}."
    return f"Finished: {stop:,} steps in {len(stages)} stage{'s' if len(stages) > 1 else ''}."


def _headline(run: RunRecords) -> Iterable[str]:
    """The numbers that matter most, each with an aside."""
    train, evals, growths = (run.of(kind) for kind in ("train", "eval", "growth"))
    first, *_, now = (run.stages[0], *run.reached)

    loss = last(evals, "loss")
    if now.architecture.patches is not None:
        accuracy = show(last(evals, "accuracy"), "{:.1%}".format)
        yield item("Evaluation accuracy", accuracy, f"loss {show(loss, '{:.4f}'.format)}")
    else:
        yield item("Evaluation loss", show(loss, "{:.4f}".format), _bits(loss, now))

    per_token = power(now.architecture.training_flops_per_token())
    per_token = f"{per_token} per token in stage {now.index + 1}"
    yield item("Training FLOPs", show(last(run.records, "flops"), power), per_token)

    old, new = first.architecture.num_parameters, now.architecture.num_parameters
    size = format_count(new) if old == new else f"{format_count(old)} → {format_count(new)}"
    yield item("Parameters", size, f"{new / old:.1f} times as many" if old != new else "")

    growing = sum(record.get("seconds") or 0.0 for record in growths)
    share = f"{growing:.1f} s of it growing" if growths else ""
    yield item("Time", show(last(train, "seconds"), format_duration), share)

    errors = [record["logit_error"] for record in growths if record.get("logit_error") is not None]
    worst = f"logit error at most {power(max(errors))}" if errors else ""
    yield item("Growths", str(len(growths)), worst)


def _bits(loss: float | None, stage: Stage) -> str:
    if loss is None:
        return ""
    # With 256 tokens a token is a byte.
    unit = "byte" if stage.architecture.vocab_size == 256 else "token"
    return f"{loss / math.log(2):.3f} bits per {unit}"


def _loss_figures(run: RunRecords) -> str:
    key: dict[str, str] = {}
    if run.of("train"):
        key |= {"train": "training, smoothed", "raw": "training, as measured"}
    if run.of("eval"):
        key["eval"] = "evaluation"
    if not key:
        return "<p>Nothing has been measured yet.</p>"
    if run.of("growth"):
        key["growth"] = "growth, from one stage to the next"
    spans = "".join(f'<span class="{style}">{text}</span>' for style, text in key.items())
    drawn = [plots.loss_plot(run, axis) for axis in AXES if axis != "seconds" or run.of("train")]
    return f'<div class="key">{spans}</div>\n{figures(drawn)}'


def _step_figures(run: RunRecords) -> str:
    if not run.of("train"):
        return ""
    drawn = (plots.learning_rate_plot, plots.parameters_plot, plots.gradient_plot)
    return figures([plot(run) for plot in (*drawn, plots.throughput_plot)])


def figures(drawn: Iterable[str]) -> str:
    """Figures side by side, as HTML."""
    each = "\n".join(f"<figure>{plot}</figure>" for plot in drawn)
    return f'<div class="figures">\n{each}\n</div>'


def _stage_table(run: RunRecords) -> str:
    stages, total = run.stages, last(run.records, "flops")
    spent = 0.0
    rows = []
    for before, stage in zip((stages[0], *stages), stages, strict=False):
        mine = [record for record in run.records if record["stage"] == stage.index]
        until = run.flops_until(stage)
        flops = None if until is None else until - spent
        spent = spent if until is None else until
        speeds = values(_of(mine, "train"), "tokens_per_second")
        speed = float(np.nanmedian(speeds)) if np.isfinite(speeds).any() else None
        loss, accuracy = (last(_of(mine, "eval"), name) for name in ("loss", "accuracy"))
        architecture = stage.architecture
        rows.append(
            {
                "stage": Cell(str(stage.index + 1)),
                "steps": Cell(f"{stage.start:,}–{stage.stop:,}"),
                **_size_cells(before.architecture, architecture),
                "parameters": Cell(format_count(architecture.num_parameters)),
                "FLOPs / token": Cell(power(architecture.training_flops_per_token())),
                "FLOPs": Cell(show(flops, power)),
                "share": Cell(show(flops and total and flops / total, "{:.1%}".format)),
                "tokens / s": Cell(show(speed, "{:,.0f}".format)),
                "eval loss": Cell(show(loss, "{:.4f}".format)),
                "accuracy": Cell(show(accuracy, "{:.1%}".format)),
            }
        )
    length = stages[-1].architecture.max_length
    note = (
        f"Highlighted: what grew. qk and v are widths of one head, mlp of one layer’s MLP; slashes "
        f"separate layers. FLOPs / token are those of a training step at length {length:,}. "
        f"Tokens / s is the median; eval loss and accuracy are the stage’s last."
    )
    return f'{table(rows)}\n<p class="note">{note}</p>'


def _size_cells(before: Architecture, after: Architecture) -> dict[str, Cell]:
    cells = {}
    for field, name in _SHOWN_FIELDS.items():
        old, new = getattr(before, field), getattr(after, field)
        cells[name] = Cell(sizes(new), "" if old == new else "changed")
    return cells


def _growth_table(run: RunRecords) -> str:
    rows = []
    for record in run.of("growth"):
        before, after = record.get("loss_before"), record.get("loss_after")
        difference = None if before is None or after is None else after - before
        numbers = [record.get("parameters_before"), record.get("parameters_after")]
        changes = record.get("changes", {})
        grown = [
            f"{name} {sizes(changes[field][0])}→{sizes(changes[field][1])}"
            for field, name in _SHOWN_FIELDS.items()
            if field in changes
        ]
        rows.append(
            {
                "growth": Cell(f"{record['stage']} → {record['stage'] + 1}"),
                "step": Cell(f"{record['step']:,}"),
                "what grew": Cell(", ".join(grown) or MISSING, "text"),
                "parameters": Cell(" → ".join(show(number, format_count) for number in numbers)),
                "loss before": Cell(show(before, "{:.6f}".format)),
                "loss after": Cell(show(after, "{:.6f}".format)),
                "difference": Cell(show(difference, power)),
                "logit error": Cell(show(record.get("logit_error"), power)),
                "time": Cell(show(record.get("seconds"), "{:.2f} s".format)),
            }
        )
    if not rows:
        return ""
    note = (
        "The evaluation loss right before and right after each growth, on the same batches. Logit "
        "error is the largest change of a logit over the largest logit."
    )
    return f'{table(rows)}\n<p class="note">{note}</p>'


def _samples(run: RunRecords) -> str:
    """The last step's samples, and the earlier ones folded away."""
    samples = sorted(run.of("sample"), key=lambda record: record["step"])
    groups = []
    for step, group in itertools.groupby(samples, key=lambda record: record["step"]):
        texts = list(group)
        heading = f"<h3>Step {step:,}, stage {texts[0]['stage'] + 1}</h3>"
        groups.append("\n".join((heading, *map(_sample, texts))))
    if not groups:
        return ""
    *earlier, latest = groups
    if not earlier:
        return latest
    folded = "\n".join(reversed(earlier))
    return f"{latest}\n<details>\n<summary>Earlier samples</summary>\n{folded}\n</details>"


def _sample(record: Record) -> str:
    prompt = record.get("prompt", "")
    text = record.get("text", "").removeprefix(prompt)
    # HTML drops a line break that opens a <pre>, unless another stands before it.
    return f"<pre>\n<b>{escape(prompt)}</b>{escape(text)}</pre>"


def _folded(run: RunRecords) -> str:
    """The config, and the architecture of each stage."""
    parts = {"All fields": run.config.to_dict()} | {
        f"Architecture of stage {stage.index + 1}": stage.architecture.to_dict()
        for stage in run.stages
    }
    return "\n".join(
        f"<details>\n<summary>{name}</summary>\n"
        f"<pre>{escape(json.dumps(part, indent=2))}</pre>\n</details>"
        for name, part in parts.items()
    )


def _of(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]
