"""The figures of a run and of several: records in, SVG text out."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from growth.training.formatting import format_count
from growth.training.optimization import rates
from growth.training.report.canvas import (
    EVAL,
    FONT,
    INK,
    LEFT,
    MUTED,
    PAPER,
    RIGHT,
    RUNS,
    TRAIN,
    WIDTH,
    canvas,
    exponent_of,
    mark,
    show_all,
    svg,
    times,
)
from growth.training.report.metrics import Records
from growth.training.report.records import AXES, RunRecords, values

_HEIGHT = 230

# Labels stand in rows above a plot: the height of one, and how many there may be.
_ROW = 15
_MOST_ROWS = 3

# A curve never has more points than it could show.
_MOST_POINTS = 1200

_LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


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
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


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
    for place in reversed(marks):
        # The lines further right that the label would cover must end below it.
        covered = [
            row for other, row in zip(reversed(marks), rows, strict=False) if other < place + width
        ]
        rows.append(1 + max(covered, default=-1))
    return tuple(reversed(rows))


def loss_plot(run: RunRecords, axis: str) -> str:
    """Training and evaluation loss of a run, with the growths marked and labelled.

    Args:
      run: the run.
      axis: one of `AXES`.
    """
    train, evals, growths = (run.of(kind) for kind in ("train", "eval", "growth"))
    places = [run.places(records, axis) for records in (train, evals, growths)]
    scale, label = _unit(axis, np.concatenate(places[:2]))
    position, judged, grown = (place / scale for place in places)
    end = float(np.nanmax(np.concatenate([position, judged]), initial=0.0)) or 1.0

    marked = [
        (mark, record) for mark, record in zip(grown, growths, strict=True) if np.isfinite(mark)
    ]
    marks = [float(mark) for mark, _ in marked]
    labels, rows, limit = _growth_labels([r for _, r in marked], marks, end * 1.01)
    figure, axes = canvas(_HEIGHT, top=10 + _ROW * (1 + max(rows, default=-1)))
    axes.set_xlabel(label, loc="right")
    axes.set_xlim(0, limit)

    loss, eval_loss = values(train, "loss"), values(evals, "loss")
    softened = smooth(loss, _window(loss))
    shown = _shown(len(loss))
    axes.plot(position[shown], loss[shown], color=TRAIN, alpha=0.25, linewidth=0.8)
    alone = "o" if len(loss) == 1 else ""  # a line needs two points
    axes.plot(position[shown], softened[shown], alone, color=TRAIN, linewidth=1.6, markersize=3)
    axes.plot(
        judged,
        eval_loss,
        color=EVAL,
        marker="o",
        markersize=4.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        linestyle="none",
    )
    show_all(axes, np.concatenate([loss, eval_loss]))
    for place, text, row in zip(marks, labels, rows, strict=True):
        mark(axes, place, top=1 + (row + 0.9) * _ROW / _HEIGHT)
        axes.annotate(
            text,
            (place, 1),
            (4, row * _ROW + 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            color=MUTED,
            size=FONT,
            annotation_clip=False,
        )
    return svg(figure, f"Loss against {AXES[axis]}")


def comparison_plot(runs: Sequence[RunRecords], axis: str) -> str:
    """Evaluation loss of several runs, a line each; a ring where one has grown.

    Args:
      runs: the runs, in the order of their colours.
      axis: one of `AXES`.
    """
    all_places = [run.places(run.of("eval"), axis) for run in runs]
    scale, label = _unit(axis, np.concatenate(all_places))
    figure, axes = canvas(_HEIGHT, top=10)
    axes.set_xlabel(label, loc="right")
    losses = [values(run.of("eval"), "loss") for run in runs]
    for number, (run, places, loss) in enumerate(zip(runs, all_places, losses, strict=True)):
        colour = RUNS[number % len(RUNS)]
        style = _LINES[number // len(RUNS) % len(_LINES)]
        axes.plot(places / scale, loss, color=colour, linewidth=1.6, linestyle=style)
        axes.plot(places / scale, loss, "o", color=colour, markersize=3)
        grown = run.of("growth")
        if grown and np.isfinite(places).any():
            at = run.places(grown, axis)
            axes.plot(
                at / scale,
                np.interp(at, places, loss),
                "o",
                markersize=7,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=1.2,
            )
    axes.set_xlim(0, (np.nanmax(np.concatenate(all_places), initial=0.0) / scale or 1.0) * 1.02)
    show_all(axes, np.concatenate(losses))
    return svg(figure, f"Evaluation loss against {AXES[axis]}")


def learning_rate_plot(run: RunRecords) -> str:
    """The learning rate at every step that has been taken."""
    rate = rates(run.config, 0, max(run.step, 1))
    exponent = exponent_of(rate)
    figure, axes = _step_canvas(run, f"learning rate{times(exponent)}")
    axes.plot(np.arange(1, len(rate) + 1), rate / 10.0**exponent, color=INK, linewidth=1.6)
    axes.set_ylim(0, (rate.max() / 10.0**exponent or 1.0) * 1.12)
    return svg(figure, "Learning rate against steps")


def parameters_plot(run: RunRecords) -> str:
    """The number of parameters over the steps taken so far."""
    counts = np.array([s.architecture.num_parameters for s in run.reached], dtype=np.float64)
    exponent = exponent_of(counts) // 3 * 3
    edges = [stage.start for stage in run.reached] + [max(run.reached[-1].start, run.step)]
    figure, axes = _step_canvas(run, f"parameters{times(exponent)}")
    axes.stairs(counts / 10.0**exponent, edges, baseline=None, color=INK, linewidth=1.6)
    axes.set_ylim(0, counts.max() / 10.0**exponent * 1.12)
    return svg(figure, "Parameters against steps")


def gradient_plot(run: RunRecords) -> str:
    """The global norm of the gradient, before it is clipped."""
    figure, axes = _step_canvas(run, "gradient norm")
    norm = _curve(run, "grad_norm", axes)
    show_all(axes, norm)
    return svg(figure, "Gradient norm against steps")


def throughput_plot(run: RunRecords) -> str:
    """Training tokens per second, of training alone."""
    exponent = exponent_of(values(run.of("train"), "tokens_per_second")) // 3 * 3
    figure, axes = _step_canvas(run, f"training tokens per second{times(exponent)}")
    speed = _curve(run, "tokens_per_second", axes, 10.0**exponent)
    axes.set_ylim(0, (np.nanmax(speed, initial=0.0) or 1.0) * 1.12)
    return svg(figure, "Tokens per second against steps")


def _curve(run: RunRecords, name: str, axes: Axes, scale: float = 1.0) -> np.ndarray:
    """Draws a field of the training records, as measured and smoothed; gives what is drawn."""
    train = run.of("train")
    steps, curve = values(train, "step"), values(train, name) / scale
    shown = _shown(len(curve))
    axes.plot(steps[shown], curve[shown], color=INK, alpha=0.25, linewidth=0.8)
    axes.plot(steps[shown], smooth(curve, _window(curve))[shown], color=INK, linewidth=1.6)
    return curve[shown]


def _step_canvas(run: RunRecords, title: str) -> tuple[Figure, Axes]:
    figure, axes = canvas(110, top=26)
    axes.set_xlim(0, (run.step or 1) * 1.01)
    axes.set_xlabel("steps", loc="right")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_title(title, loc="left", color=MUTED, size=FONT)
    for record in run.of("growth"):
        mark(axes, record["step"], top=1.0)
    return figure, axes


def _unit(axis: str, places: np.ndarray) -> tuple[float, str]:
    """By what numbers of an axis are divided, and its label."""
    name = AXES[axis]
    if axis == "seconds":
        end = np.nanmax(places, initial=0.0)
        steps = ((3 * 3600, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))
        return next((scale, f"{name}, {unit}") for least, scale, unit in steps if end >= least)
    exponent = 0 if axis == "step" else exponent_of(places) // 3 * 3
    return 10.0**exponent, f"{name}{times(exponent)}"


def _window(curve: np.ndarray) -> int:
    return 2 * (len(curve) // 120) + 1


def _shown(number: int) -> np.ndarray:
    """Which of so many points are drawn."""
    shown = np.unique(np.linspace(0, max(number - 1, 0), _MOST_POINTS).astype(int))
    return shown[:number]


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
        width = (longest * 0.65 * FONT + 8) / (WIDTH - LEFT - RIGHT)
        limit = max(end, max(marks, default=0.0) / (1 - width))
        rows = label_rows(marks, width * limit)
        if max(rows, default=0) < _MOST_ROWS:
            break
    return labels, rows, limit
