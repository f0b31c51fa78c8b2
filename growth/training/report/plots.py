"""The report's figures: records in, SVG text out.

Matplotlib draws them with stand-in colours, which become the page's CSS variables, so that a figure
follows the page into dark mode; its text takes the page's font.
"""

import io
import math
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from growth.training.formatting import format_count
from growth.training.report.metrics import Records
from growth.training.schedule import Stage

# The CSS variables that the page defines, and the colours that stand in for them while drawing.
_INK, _MUTED, _LINE, _PAPER, _TRAIN, _EVAL = (f"#0000a{digit}" for digit in range(6))
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _PAPER: "var(--paper)",
    _TRAIN: "var(--train)",
    _EVAL: "var(--eval)",
}

# Sizes in pixels of the page's widest layout.
_WIDTH = 480
_HEIGHT = 230
_LEFT, _RIGHT, _BOTTOM = 40, 20, 40
_FONT = 11

# Labels stand in rows above a plot: the height of one, and how many there may be.
_ROW = 15
_MOST_ROWS = 3

# A curve never has more points than it could show.
_MOST_POINTS = 1200

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def values(records: Records, name: str) -> np.ndarray:
    """One field of all records, float64; NaN where a record lacks it."""
    column = [record.get(name) for record in records]
    return np.array([math.nan if value is None else value for value in column], dtype=np.float64)


def smooth(curve: np.ndarray, window: int) -> np.ndarray:
    """The mean of `curve` over `window` neighbours, of those that exist and are finite.

    Args:
      curve: float, shape (n,).
      window: odd.

    Returns:
      Shape (n,); NaN where the window has no finite value.
    """
    finite = np.isfinite(curve)
    # Sums over the window as differences of running sums, with zeros beyond both ends.
    ends = (window // 2 + 1, window // 2)
    sums = np.cumsum(np.pad(np.where(finite, curve, 0.0), ends))
    counts = np.cumsum(np.pad(finite, ends))
    count = counts[window:] - counts[:-window]
    total = sums[window:] - sums[:-window]
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def label_rows(marks: Sequence[float], width: float) -> tuple[int, ...]:
    """The rows in which labels of vertical lines stand, above a plot.

    A label begins at its line, which ends there; no label meets another, or another's line.

    Args:
      marks: where the lines stand, in increasing order.
      width: of a label, in the same unit.

    Returns:
      For each line its row, 0 for the lowest.
    """
    rows: list[int] = []
    for mark in reversed(marks):
        # The lines further right that the label would cover must end below it.
        covered = [
            row for other, row in zip(reversed(marks), rows, strict=False) if other < mark + width
        ]
        rows.append(1 + max(covered, default=-1))
    return tuple(reversed(rows))


def loss_plot(records: Records, x: str) -> str:
    """Training and evaluation loss, with the growths marked and labelled.

    Args:
      records: a run's records.
      x: "step" or "flops".
    """
    train = [record for record in records if record["kind"] == "train"]
    evals = [record for record in records if record["kind"] == "eval"]
    growths = [r for r in records if r["kind"] == "growth" and r.get(x) is not None]
    numbers = np.concatenate([values(train, x), values(evals, x)])
    exponent = _exponent(numbers) if x == "flops" else 0
    scale = 10.0**exponent
    end = float(np.nanmax(numbers, initial=0.0)) / scale or 1.0

    marks = (values(growths, x) / scale).tolist()
    labels, rows, limit = _growth_labels(growths, marks, end * 1.01)
    figure, axes = _canvas(_HEIGHT, top=10 + _ROW * (1 + max(rows, default=-1)))
    axes.set_xlabel(
        f"{'steps' if x == 'step' else 'training FLOPs'}{_times(exponent)}", loc="right"
    )
    axes.set_xlim(0, limit)

    position, loss = values(train, x) / scale, values(train, "loss")
    shown = np.unique(np.linspace(0, max(len(loss) - 1, 0), _MOST_POINTS).astype(int))
    shown = shown[: len(loss)]
    softened = smooth(loss, 2 * (len(loss) // 120) + 1)
    axes.plot(position[shown], loss[shown], color=_TRAIN, alpha=0.25, linewidth=0.8)
    alone = "o" if len(loss) == 1 else ""  # a line needs two points
    axes.plot(position[shown], softened[shown], alone, color=_TRAIN, linewidth=1.6, markersize=3)
    axes.plot(
        values(evals, x) / scale,
        values(evals, "loss"),
        color=_EVAL,
        marker="o",
        markersize=4.5,
        markeredgecolor=_PAPER,
        markeredgewidth=0.8,
        linestyle="none",
    )
    axes.set_ylim(_loss_limits(np.concatenate([loss, values(evals, "loss")])))

    for mark, label, row in zip(marks, labels, rows, strict=True):
        _mark(axes, mark, top=1 + (row + 0.9) * _ROW / _HEIGHT)
        axes.annotate(
            label,
            (mark, 1),
            (4, row * _ROW + 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            color=_MUTED,
            size=_FONT,
            annotation_clip=False,
        )
    return _svg(figure, f"Loss against {'steps' if x == 'step' else 'training FLOPs'}")


def learning_rate_plot(records: Records) -> str:
    """The learning rate over steps."""
    train = [record for record in records if record["kind"] == "train"]
    rate = values(train, "learning_rate")
    exponent = _exponent(rate)
    figure, axes = _step_canvas(records)
    axes.plot(values(train, "step"), rate / 10.0**exponent, color=_INK, linewidth=1.6)
    axes.set_title(f"learning rate{_times(exponent)}", loc="left", color=_MUTED, size=_FONT)
    axes.set_ylim(0, (np.nanmax(rate, initial=0.0) / 10.0**exponent or 1.0) * 1.12)
    return _svg(figure, "Learning rate against steps")


def parameters_plot(records: Records, stages: Sequence[Stage]) -> str:
    """The number of parameters over the steps taken so far.

    Args:
      records: a run's records.
      stages: the stages that have begun.
    """
    last = max((record["step"] for record in records), default=0)
    counts = np.array([stage.architecture.num_parameters for stage in stages], dtype=np.float64)
    exponent = _exponent(counts) // 3 * 3
    edges = [stage.start for stage in stages] + [max(stages[-1].start, last)]
    figure, axes = _step_canvas(records)
    axes.stairs(counts / 10.0**exponent, edges, baseline=None, color=_INK, linewidth=1.6)
    axes.set_title(f"parameters{_times(exponent)}", loc="left", color=_MUTED, size=_FONT)
    axes.set_ylim(0, counts.max() / 10.0**exponent * 1.12)
    return _svg(figure, "Parameters against steps")


def _canvas(height: int, *, top: int) -> tuple[Figure, Axes]:
    """A figure with one axes of `height` pixels and `top` pixels of room above."""
    total = height + top + _BOTTOM
    figure = Figure(figsize=(_WIDTH / 72, total / 72), facecolor="none")
    axes = figure.add_axes(
        (
            _LEFT / _WIDTH,
            _BOTTOM / total,
            (_WIDTH - _LEFT - _RIGHT) / _WIDTH,
            height / total,
        )
    )
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_MUTED, linewidth=0.8)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_FONT, labelcolor=_MUTED, color=_MUTED, width=0.8, length=4)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.xaxis.label.set(color=_MUTED, size=_FONT)
    return figure, axes


def _step_canvas(records: Records) -> tuple[Figure, Axes]:
    figure, axes = _canvas(110, top=26)
    last = max((record["step"] for record in records), default=0)
    axes.set_xlim(0, (last or 1) * 1.01)
    axes.set_xlabel("steps", loc="right")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    for record in records:
        if record["kind"] == "growth":
            _mark(axes, record["step"], top=1.0)
    return figure, axes


def _mark(axes: Axes, x: float, top: float) -> None:
    axes.plot(
        [x, x],
        [0, top],
        transform=axes.get_xaxis_transform(),
        color=_MUTED,
        linewidth=0.9,
        linestyle=(0, (3, 2)),
        clip_on=False,
        zorder=1,
    )


def _growth_labels(
    growths: Records, marks: Sequence[float], end: float
) -> tuple[list[str], tuple[int, ...], float]:
    """The growths' labels, their rows, and where the axis ends: at `end`, or after the last label.

    The labels have the numbers of parameters unless it gets too crowded.
    """
    short = [f"{record['stage']}→{record['stage'] + 1}" for record in growths]
    sizes = [
        (record.get("parameters_before"), record.get("parameters_after")) for record in growths
    ]
    long = [
        f"{label}: {format_count(before)}→{format_count(after)}" if before and after else label
        for label, (before, after) in zip(short, sizes, strict=True)
    ]
    for labels in (long, short):
        longest = max(map(len, labels), default=0)
        # On average a character is at most 0.65 times as wide as it is high.
        width = (longest * 0.65 * _FONT + 8) / (_WIDTH - _LEFT - _RIGHT)
        limit = max(end, max(marks, default=0.0) / (1 - width))
        rows = label_rows(marks, width * limit)
        if max(rows, default=0) < _MOST_ROWS:
            break
    return labels, rows, limit


def _loss_limits(losses: np.ndarray) -> tuple[float, float]:
    """Limits that show the curve where it is interesting: the first steep steps may be cut off."""
    finite = losses[np.isfinite(losses)]
    if not finite.size:
        return 0.0, 1.0
    low, high = finite.min(), np.quantile(finite, 0.97)
    pad = 0.06 * (high - low) or 0.05
    return low - pad, high + pad


def _exponent(numbers: np.ndarray) -> int:
    """The power of ten of the largest number; 0 if there is none."""
    largest = np.nanmax(numbers, initial=0.0)
    return math.floor(math.log10(largest)) if largest > 0 else 0


def _times(exponent: int) -> str:
    return f", × 10{str(exponent).translate(_SUPERSCRIPTS)}" if exponent else ""


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for superfluous in (
        r"<metadata>.*?</metadata>\s*",
        r"<defs>\s*<style.*?</defs>\s*",
        r' id="[\w.]+_\d+"',  # not unique in a page with several figures, and never used
        r"font-family: [^;\"]*;? ?",
    ):
        svg = re.sub(superfluous, "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    view = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {view[0] if view else ""} role="img" aria-label="{name}">'
    return re.sub(r"<svg[^>]*>", opening, svg, count=1)
