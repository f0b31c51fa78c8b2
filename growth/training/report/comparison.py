"""Runs side by side: the same losses over steps, tokens, FLOPs and wall-clock time."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from growth.training.formatting import format_count, format_duration
from growth.training.report import plots
from growth.training.report.html import MISSING, Cell, item, power, show, table
from growth.training.report.page import figures, write_page
from growth.training.report.records import AXES, ReportError, RunRecords, last, read_run, values

_SHOWN: Mapping[str, Callable[[float], str]] = {
    "step": "{:,.0f}".format,
    "tokens": format_count,
    "flops": power,
    "seconds": format_duration,
}


def write_comparison(
    output: str | os.PathLike[str], workdirs: Sequence[str | os.PathLike[str]]
) -> Path:
    """Writes a page that puts runs side by side.

    Args:
      output: the HTML file to write.
      workdirs: the directories of the runs.

    Returns:
      The path of the page.

    Raises:
      ReportError: there is no run in one of the directories, or none is given.

    Examples:
      >>> from growth import training
      >>> training.write_comparison("report/both.html", ["runs/small", "runs/small"]).name
      'both.html'

    References:
      Hoffmann et al., arXiv 2203.15556, section 3: losses are compared at equal FLOPs.
    """
    if not workdirs:
        raise ReportError("no run is given: name the directories of one or more")
    runs = named_apart([read_run(workdir) for workdir in workdirs], workdirs)
    title = ", ".join(run.name for run in runs)
    sections = {
        "Evaluation loss": _loss_figures(runs),
        "Runs": _table_of_runs(runs),
        "What a loss costs": _costs(runs),
        "What differs": _differences(runs),
    }
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    number = f"{len(runs)} run{'s' if len(runs) > 1 else ''} side by side."
    write_page(path, title, number, _headline(runs), sections)
    return path


def named_apart(
    runs: Sequence[RunRecords], workdirs: Sequence[str | os.PathLike[str]]
) -> tuple[RunRecords, ...]:
    """The runs, by the names of their directories, or by their paths where two are the same."""
    names = [run.name for run in runs]
    unique = names if len(set(names)) == len(names) else [str(workdir) for workdir in workdirs]
    return tuple(
        RunRecords(name, run.config, run.records) for name, run in zip(unique, runs, strict=True)
    )


def first_at(run: RunRecords, loss: float, axis: str) -> float | None:
    """Where on an axis a run's evaluation loss first falls to `loss`; None if it does not.

    Between two evaluations the loss is taken to fall along a line.
    """
    evals = [record for record in run.of("eval") if record.get("loss") is not None]
    places, losses = run.places(evals, axis), values(evals, "loss")
    below = np.flatnonzero(losses <= loss)
    if not below.size:
        return None
    at = int(below[0])
    if at == 0:
        return float(places[0])
    share = (losses[at - 1] - loss) / (losses[at - 1] - losses[at])
    return float(places[at - 1] + share * (places[at] - places[at - 1]))


def _headline(runs: Sequence[RunRecords]) -> list[str]:
    return [
        item(
            escape(run.name),
            show(last(run.of("eval"), "loss"), "{:.4f}".format),
            f"evaluation loss after {show(_spent(run, 'flops'), power)} FLOPs",
        )
        for run in runs
    ]


def _loss_figures(runs: Sequence[RunRecords]) -> str:
    if not any(run.of("eval") for run in runs):
        return "<p>Nothing has been evaluated yet.</p>"
    spans = "".join(
        f'<span class="line" style="color: var(--run{number % len(plots.RUNS) + 1})">'
        f"{escape(run.name)}</span>"
        for number, run in enumerate(runs)
    )
    if any(run.of("growth") for run in runs):
        spans += '<span class="ring">growth</span>'
    drawn = [plots.comparison_plot(runs, axis) for axis in AXES]
    return f'<div class="key">{spans}</div>\n{figures(drawn)}'


def _table_of_runs(runs: Sequence[RunRecords]) -> str:
    rows = []
    for run in runs:
        sizes = [stage.architecture.num_parameters for stage in run.reached]
        losses = values(run.of("eval"), "loss")
        best = float(np.nanmin(losses)) if np.isfinite(losses).any() else None
        rows.append(
            {
                "run": Cell(escape(run.name)),
                "parameters": Cell(" → ".join(map(format_count, sizes))),
                "seed": Cell(str(run.config.seed)),
                **{
                    AXES[axis]: Cell(show(_spent(run, axis), text)) for axis, text in _SHOWN.items()
                },
                "eval loss": Cell(show(last(run.of("eval"), "loss"), "{:.4f}".format)),
                "lowest": Cell(show(best, "{:.4f}".format)),
            }
        )
    return table(rows)


def _costs(runs: Sequence[RunRecords]) -> str:
    """What each run spent until it first had a loss that all of them came to."""
    lowest = [np.nanmin(values(run.of("eval"), "loss"), initial=math.inf) for run in runs]
    if not all(map(math.isfinite, lowest)):
        return ""
    loss = float(max(lowest))
    rows = [
        {
            "run": Cell(escape(run.name)),
            **{
                AXES[axis]: Cell(show(first_at(run, loss, axis), text))
                for axis, text in _SHOWN.items()
            },
        }
        for run in runs
    ]
    note = (
        f"Until the evaluation loss is first {loss:.4f}, the lowest that all of them reach; "
        f"between two evaluations it is taken to fall along a line."
    )
    return f'{table(rows)}\n<p class="note">{note}</p>'


def _differences(runs: Sequence[RunRecords]) -> str:
    """The fields of the configs in which the runs differ."""
    configs = [_flat(run.config.to_dict()) for run in runs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    rows = [
        {"field": Cell(escape(name), "text")}
        | {
            escape(run.name): Cell(escape(str(config.get(name, MISSING))), "text")
            for run, config in zip(runs, configs, strict=True)
        }
        for name in names
        if len({repr(config.get(name)) for config in configs}) > 1
    ]
    return table(rows) if rows else "<p>Their configs are the same.</p>" * (len(runs) > 1)


def _spent(run: RunRecords, axis: str) -> float | None:
    """Where a run is on an axis."""
    place = float(run.places([{"step": run.step}], axis)[0])
    return place if math.isfinite(place) else None


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """The fields of a config by their paths."""
    if isinstance(values, Mapping):
        return {
            path: value
            for key, part in values.items()
            for path, value in _flat(part, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: values}
