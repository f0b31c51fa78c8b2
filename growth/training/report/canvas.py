"""Empty figures in the style of the page, and figures as SVG text.

Matplotlib draws with stand-in colours, which become the page's CSS variables, so that a figure
follows the page into dark mode; its text takes the page's font.
"""

import io
import math
import re

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

# The CSS variables that the page defines, and the colours that stand in for them while drawing.
INK, MUTED, LINE, PAPER, TRAIN, EVAL = (f"#0000a{digit}" for digit in range(6))
RUNS = tuple(f"#0000b{digit}" for digit in range(1, 7))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    TRAIN: "var(--train)",
    EVAL: "var(--eval)",
    **{colour: f"var(--run{number})" for number, colour in enumerate(RUNS, start=1)},
}

# Sizes in pixels of the page's widest layout.
WIDTH, LEFT, RIGHT = 480, 40, 20
_BOTTOM = 40
FONT = 11

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# An axis is logarithmic where its largest number is so many times its smallest.
_WIDE = 3.0
_MOST_TICKS = 7
_TICKS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))


def canvas(height: int, *, top: int) -> tuple[Figure, Axes]:
    """A figure with one axes of `height` pixels and `top` pixels of room above."""
    total = height + top + _BOTTOM
    figure = Figure(figsize=(WIDTH / 72, total / 72), facecolor="none")
    axes = figure.add_axes(
        (LEFT / WIDTH, _BOTTOM / total, (WIDTH - LEFT - RIGHT) / WIDTH, height / total)
    )
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=MUTED, linewidth=0.8)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT, labelcolor=MUTED, color=MUTED, width=0.8, length=4)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.xaxis.label.set(color=MUTED, size=FONT)
    return figure, axes


def show_all(axes: Axes, numbers: np.ndarray) -> None:
    """Limits and ticks that show all numbers; logarithmic where they span much."""
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        axes.set_ylim(0, 1)
        return
    low, high = float(finite.min()), float(finite.max())
    if low <= 0 or high < _WIDE * low:
        pad = 0.06 * (high - low) or 0.05
        axes.set_ylim(low - pad, high + pad)
        return
    pad = (high / low) ** 0.05
    low, high = low / pad, high * pad
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in _TICKS:
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def mark(axes: Axes, x: float, top: float) -> None:
    """A dashed vertical line up to `top`, in heights of the axes."""
    axes.plot(
        [x, x],
        [0, top],
        transform=axes.get_xaxis_transform(),
        color=MUTED,
        linewidth=0.9,
        linestyle=(0, (3, 2)),
        clip_on=False,
        zorder=1,
    )


def exponent_of(numbers: np.ndarray) -> int:
    """The power of ten of the largest number; 0 if there is none."""
    largest = np.nanmax(numbers, initial=0.0)
    return math.floor(math.log10(largest)) if largest > 0 else 0


def times(exponent: int) -> str:
    """The end of a label whose numbers are multiples of a power of ten."""
    return f", × 10{str(exponent).translate(_SUPERSCRIPTS)}" if exponent else ""


def svg(figure: Figure, name: str) -> str:
    """A figure as SVG text for the page; `name` says what it is to who cannot see it."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for superfluous in (
        r"<metadata>.*?</metadata>\s*",
        r"<defs>\s*<style.*?</defs>\s*",
        r' id="[\w.]+_\d+"',  # not unique in a page with several figures, and never used
        r"font-family: [^;\"]*;? ?",
    ):
        text = re.sub(superfluous, "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    view = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {view[0] if view else ""} role="img" aria-label="{name}">'
    return re.sub(r"<svg[^>]*>", opening, text, count=1)
