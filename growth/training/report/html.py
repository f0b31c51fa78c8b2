"""Tables, headline numbers and sizes of the report, as HTML."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from html import escape

# A tuple with more entries is shown as runs of equal ones.
_MOST_ENTRIES = 8

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell: its HTML, and the CSS class that it has."""

    html: str
    style: str = ""


def table(rows: Sequence[Mapping[str, Cell]]) -> str:
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


def item(name: str, number: str, aside: str) -> str:
    """A headline number."""
    return (
        f'<div><dt>{name}</dt><dd><div class="number">{number}</div>'
        f'<div class="aside">{aside}</div></dd></div>'
    )


def facts(told: Mapping[str, str]) -> str:
    """Names and what each of them is, given as plain text."""
    rows = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in told.items()
    )
    return f'<dl class="facts">\n{rows}\n</dl>'


def show(value: float | None, text: Callable[[float], str]) -> str:
    """A value as text, or a dash where there is none."""
    return MISSING if value is None else text(value)


def power(number: float) -> str:
    """1.3 × 10¹⁴, as HTML; a number near 1 as it is."""
    if not number or 0.01 <= abs(number) < 1000:
        return f"{number:.3g}".replace("-", "−")
    mantissa, exponent = f"{number:.1e}".split("e")
    times_ten = f"{mantissa}\N{NARROW NO-BREAK SPACE}×\N{NARROW NO-BREAK SPACE}10"
    return f"{times_ten}<sup>{int(exponent)}</sup>".replace("-", "−")


def sizes(value: int | Sequence[int]) -> str:
    """One size, or those of all layers."""
    if isinstance(value, int):
        return str(value)
    if len(value) <= _MOST_ENTRIES:
        return "/".join(map(str, value))
    runs = [(size, len(list(run))) for size, run in itertools.groupby(value)]
    return " / ".join(f"{size} (×{count})" for size, count in runs)
