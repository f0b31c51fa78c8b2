"""Numbers as people read them: counts, powers of ten, durations."""


def format_count(number: float) -> str:
    """`number` to about three digits: 812, 12.4k, 0.42M, 1.31M, 131M, 7.2B."""
    for least, unit, letter in (
        (1e12, 1e12, "T"),
        (1e9, 1e9, "B"),
        (1e5, 1e6, "M"),
        (1e3, 1e3, "k"),
    ):
        if number >= least:
            scaled = number / unit
            decimals = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{decimals}f}{letter}"
    return f"{number:.0f}"


def format_power(number: float) -> str:
    """`number` to two digits, with its power of ten: 1.3e14."""
    if not number:
        return "0"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_duration(seconds: float) -> str:
    """`seconds` as hours, minutes and seconds: 0:42, 12:05, 3:00:59, 2d 4:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{seconds:02d}"
    days, hours = divmod(hours, 24)
    return f"{f'{days}d ' if days else ''}{hours}:{minutes:02d}:{seconds:02d}"
