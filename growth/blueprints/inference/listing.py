"""Guesses as Python, to be completed and pasted."""

from collections.abc import Sequence

from growth.blueprints.inference.guessing import Guess
from growth.blueprints.inference.readings import Reading

_SHOWN = 4


def listing(found: Sequence[Guess]) -> str:
    """The guesses as Python, to be copied; what is open stands in comments."""
    rows = []
    for guess in found:
        roles = {reading.role for reading in guess.readings}
        role = _quoted(next(iter(roles))) if len(roles) == 1 and not guess.doubts else '"?"'
        axes = guess.readings[0].axes if guess.sure else "?"
        rows.append(
            (f'("{guess.path}",', f"{role},", f'"{axes}"),', f"# {guess.shape}{_open(guess)}")
        )
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    lines = [
        "    "
        + " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(["growth.Blueprint([", *lines, "])"])


def reasons(found: Sequence[Guess]) -> str:
    """Why what is open is open: each reason once, with what it is about."""
    about: dict[str, list[str]] = {}
    for guess in found:
        for doubt in guess.doubts:
            about.setdefault(doubt, []).append(guess.path)
    lines = []
    for doubt, paths in about.items():
        more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
        lines.append(f"  {', '.join(paths[:2])}{more}: {doubt}")
    return "\n".join(lines)


def _open(guess: Guess) -> str:
    if guess.sure:
        return ""
    if not guess.readings:
        return " unmatched"
    several = [_words(reading, guess.readings) for reading in guess.readings]
    shown = list(dict.fromkeys(several))
    more = f" or {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    word = "ambiguous" if len(guess.readings) > 1 else "open"
    return f" {word}: {' or '.join(shown[:_SHOWN])}{more}"


def _words(reading: Reading, among: Sequence[Reading]) -> str:
    if len({other.roles for other in among}) == 1 and len(among) > 1:
        return reading.axes
    if len({other.axes for other in among}) == 1:
        return "+".join(reading.roles)
    return f"{'+'.join(reading.roles)} {reading.axes!r}"


def _quoted(role: str | tuple[str, ...]) -> str:
    if isinstance(role, str):
        return f'"{role}"'
    return f"({', '.join(map(_quoted, role))})"
