"""The report of a run: one self-contained HTML file, made from the stages and the records."""

import dataclasses
import itertools
import json
import math
import os
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from growth.architecture import Architecture
from growth.schedule import Stage
from growth.training import report_plots
from growth.training.progress import format_count, format_duration
from growth.training.report_plots import Records

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

# A tuple with more entries is shown as runs of equal ones.
_MOST_ENTRIES = 8

_MISSING = "–"


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A table cell: its HTML, and the CSS class that it has."""

    html: str
    style: str = ""


def write_report(
    workdir: str | os.PathLike[str],
    *,
    title: str,
    stages: Sequence[Stage],
    records: Records,
    description: str = "",
) -> Path:
    """Writes `report.html`: what a run did, in figures, tables and samples.

    The run may be unfinished, and may lack any kind of record; what cannot be known is left out or
    shown as a dash.

    Args:
      workdir: where the report goes; made if missing.
      title: the page's heading.
      stages: the run's stages, those not yet reached included.
      records: the run's records, as `growth.training.metrics.read_metrics` gives them.
      description: plain text below the heading.

    Returns:
      The path of the report.

    Raises:
      ValueError: there are no stages.
    """
    if not stages:
        raise ValueError("stages is empty, but a run has at least one stage")
    template = resources.files("growth.training").joinpath("report_template.html")
    sections = {
        "Loss": _loss_figures(records),
        "Learning rate and size": _step_figures(stages, records),
        "Stages": _stage_table(stages, records),
        "Preservation": _growth_table(records),
        "Samples": _samples(records),
        "Architectures": _architectures(stages),
    }
    page = string.Template(template.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        status=_status(stages, records),
        description=f'<p class="description">{escape(description)}</p>' if description else "",
        headline="\n".join(_headline(stages, records)),
        sections="\n".join(
            f"<section>\n<h2>{heading}</h2>\n{body}\n</section>"
            for heading, body in sections.items()
            if body
        ),
    )
    path = Path(workdir) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


# The parts of the page.


def _status(stages: Sequence[Stage], records: Records) -> str:
    step, stop = max((record["step"] for record in records), default=0), stages[-1].stop
    if step < stop:
        stage = _reached(stages, records)[-1].index + 1
        return f"Not finished: step {step:,} of {stop:,}, in stage {stage} of {len(stages)}."
    return f"Finished: {stop:,} steps in {len(stages)} stage{'s' if len(stages) > 1 else ''}."


def _headline(stages: Sequence[Stage], records: Records) -> Iterable[str]:
    """The numbers that matter most, each with an aside."""
    train, evals, growths = (_of(records, kind) for kind in ("train", "eval", "growth"))
    first, *_, last = (stages[0], *_reached(stages, records))

    loss = _last(evals, "loss")
    # With 256 tokens a token is a byte.
    unit = "byte" if last.architecture.vocab_size == 256 else "token"
    bits = "" if loss is None else f"{loss / math.log(2):.3f} bits per {unit}"
    yield _item("Evaluation loss", _show(loss, "{:.4f}".format), bits)

    per_token = _power(last.architecture.training_flops_per_token())
    per_token = f"{per_token} per token in stage {last.index + 1}"
    yield _item("Training FLOPs", _show(_last(records, "flops"), _power), per_token)

    old, new = first.architecture.num_parameters, last.architecture.num_parameters
    size = format_count(new) if old == new else f"{format_count(old)} → {format_count(new)}"
    yield _item("Parameters", size, f"{new / old:.1f} times as many" if old != new else "")

    growing = sum(record.get("seconds") or 0.0 for record in growths)
    share = f"{growing:.1f} s of it growing" if growths else ""
    yield _item("Training time", _show(_last(train, "seconds"), format_duration), share)

    errors = [record["logit_error"] for record in growths if record.get("logit_error") is not None]
    worst = f"logit error at most {_power(max(errors))}" if errors else ""
    yield _item("Growths", str(len(growths)), worst)


def _item(name: str, number: str, aside: str) -> str:
    return (
        f'<div><dt>{name}</dt><dd><div class="number">{number}</div>'
        f'<div class="aside">{aside}</div></dd></div>'
    )


def _loss_figures(records: Records) -> str:
    key: dict[str, str] = {}
    if _of(records, "train"):
        key |= {"train": "training, smoothed", "raw": "training, as measured"}
    if _of(records, "eval"):
        key["eval"] = "evaluation"
    if not key:
        return "<p>Nothing has been measured yet.</p>"
    if _of(records, "growth"):
        key["growth"] = "growth, from one stage to the next"
    spans = "".join(f'<span class="{style}">{text}</span>' for style, text in key.items())
    plots = [report_plots.loss_plot(records, x) for x in ("step", "flops")]
    return f'<div class="key">{spans}</div>\n{_figures(plots)}'


def _step_figures(stages: Sequence[Stage], records: Records) -> str:
    if not _of(records, "train"):
        return ""
    parameters = report_plots.parameters_plot(records, _reached(stages, records))
    return _figures([report_plots.learning_rate_plot(records), parameters])


def _figures(plots: Iterable[str]) -> str:
    figures = "\n".join(f"<figure>{plot}</figure>" for plot in plots)
    return f'<div class="figures">\n{figures}\n</div>'


def _stage_table(stages: Sequence[Stage], records: Records) -> str:
    total = _last(records, "flops")
    spent = 0.0
    rows = []
    for before, stage in zip((stages[0], *stages), stages, strict=False):
        mine = [record for record in records if record["stage"] == stage.index]
        until = _flops_until(records, stage)
        flops = None if until is None else until - spent
        spent = spent if until is None else until
        speeds = report_plots.values(_of(mine, "train"), "tokens_per_second")
        speed = float(np.nanmedian(speeds)) if np.isfinite(speeds).any() else None
        loss = _last(_of(mine, "eval"), "loss")
        architecture = stage.architecture
        rows.append(
            {
                "stage": _Cell(str(stage.index + 1)),
                "steps": _Cell(f"{stage.start:,}–{stage.stop:,}"),
                **_size_cells(before.architecture, architecture),
                "parameters": _Cell(format_count(architecture.num_parameters)),
                "FLOPs / token": _Cell(_power(architecture.training_flops_per_token())),
                "FLOPs": _Cell(_show(flops, _power)),
                "share": _Cell(_show(flops and total and flops / total, "{:.1%}".format)),
                "tokens / s": _Cell(_show(speed, "{:,.0f}".format)),
                "eval loss": _Cell(_show(loss, "{:.4f}".format)),
            }
        )
    length = stages[-1].architecture.max_length
    note = (
        f"Highlighted: what grew. qk and v are widths of one head, mlp of one layer’s MLP; slashes "
        f"separate layers. FLOPs / token are those of a training step at length {length:,}. "
        f"Tokens / s is the median, eval loss the stage’s last."
    )
    return f'{_table(rows)}\n<p class="note">{note}</p>'


def _size_cells(before: Architecture, after: Architecture) -> dict[str, _Cell]:
    cells = {}
    for field, name in _SHOWN_FIELDS.items():
        old, new = getattr(before, field), getattr(after, field)
        cells[name] = _Cell(_sizes(new), "" if old == new else "changed")
    return cells


def _growth_table(records: Records) -> str:
    rows = []
    for record in _of(records, "growth"):
        before, after = record.get("loss_before"), record.get("loss_after")
        difference = None if before is None or after is None else after - before
        sizes = [record.get("parameters_before"), record.get("parameters_after")]
        changes = record.get("changes", {})
        grown = [
            f"{name} {_sizes(changes[field][0])}→{_sizes(changes[field][1])}"
            for field, name in _SHOWN_FIELDS.items()
            if field in changes
        ]
        rows.append(
            {
                "growth": _Cell(f"{record['stage']} → {record['stage'] + 1}"),
                "step": _Cell(f"{record['step']:,}"),
                "what grew": _Cell(", ".join(grown) or _MISSING, "text"),
                "parameters": _Cell(" → ".join(_show(size, format_count) for size in sizes)),
                "loss before": _Cell(_show(before, "{:.6f}".format)),
                "loss after": _Cell(_show(after, "{:.6f}".format)),
                "difference": _Cell(_show(difference, _power)),
                "logit error": _Cell(_show(record.get("logit_error"), _power)),
                "time": _Cell(_show(record.get("seconds"), "{:.2f} s".format)),
            }
        )
    if not rows:
        return ""
    note = (
        "The evaluation loss right before and right after each growth, on the same batches. Logit "
        "error is the largest change of a logit over the largest logit."
    )
    return f'{_table(rows)}\n<p class="note">{note}</p>'


def _samples(records: Records) -> str:
    """The last step's samples, and the earlier ones folded away."""
    samples = sorted(_of(records, "sample"), key=lambda record: record["step"])
    groups = []
    for step, group in itertools.groupby(samples, key=lambda record: record["step"]):
        texts = list(group)
        heading = f"<h3>Step {step:,}, stage {texts[0]['stage'] + 1}</h3>"
        groups.append("\n".join((heading, *map(_sample, texts))))
    if not groups:
        return ""
    *earlier, last = groups
    if not earlier:
        return last
    folded = "\n".join(reversed(earlier))
    return f"{last}\n<details>\n<summary>Earlier samples</summary>\n{folded}\n</details>"


def _sample(record: Mapping[str, Any]) -> str:
    prompt = record.get("prompt", "")
    text = record.get("text", "").removeprefix(prompt)
    # HTML drops a line break that opens a <pre>, unless another stands before it.
    return f"<pre>\n<b>{escape(prompt)}</b>{escape(text)}</pre>"


def _architectures(stages: Sequence[Stage]) -> str:
    return "\n".join(
        f"<details>\n<summary>Stage {stage.index + 1}</summary>\n"
        f"<pre>{escape(json.dumps(stage.architecture.to_dict(), indent=2))}</pre>\n</details>"
        for stage in stages
    )


def _table(rows: Sequence[Mapping[str, _Cell]]) -> str:
    """A table of rows that map the columns' names to cells; a header is set as its first cell."""
    head = "".join(f'<th class="{cell.style}">{name}</th>' for name, cell in rows[0].items())
    body = "\n".join(
        "<tr>"
        + "".join(f'<td class="{cell.style}">{cell.html}</td>' for cell in row.values())
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


# What the records say.


def _of(records: Records, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def _last(records: Records, name: str) -> float | None:
    """The last value of a field that there is."""
    return next((r[name] for r in reversed(records) if r.get(name) is not None), None)


def _flops_until(records: Records, stage: Stage) -> float | None:
    """FLOPs spent when a stage ended, or so far."""
    ends = [r for r in _of(records, "growth") if r["stage"] == stage.index + 1]
    mine = [r for r in records if r["stage"] == stage.index and r["kind"] != "growth"]
    return _last(ends or mine, "flops")


def _reached(stages: Sequence[Stage], records: Records) -> Sequence[Stage]:
    """The stages that have begun."""
    last = max((record["stage"] for record in records), default=0)
    return [stage for stage in stages if stage.index <= last]


# Numbers as text.


def _show(value: float | None, text: Callable[[float], str]) -> str:
    return _MISSING if value is None else text(value)


def _power(number: float) -> str:
    """1.3 × 10¹⁴, as HTML; a number near 1 as it is."""
    if not number or 0.01 <= abs(number) < 1000:
        return f"{number:.3g}".replace("-", "−")
    mantissa, exponent = f"{number:.1e}".split("e")
    power = f"{mantissa}\N{NARROW NO-BREAK SPACE}×\N{NARROW NO-BREAK SPACE}10"
    return f"{power}<sup>{int(exponent)}</sup>".replace("-", "−")


def _sizes(value: int | Sequence[int]) -> str:
    """One size, or those of all layers."""
    if isinstance(value, int):
        return str(value)
    if len(value) <= _MOST_ENTRIES:
        return "/".join(map(str, value))
    runs = [(size, len(list(run))) for size, run in itertools.groupby(value)]
    return " / ".join(f"{size} (×{count})" for size, count in runs)
