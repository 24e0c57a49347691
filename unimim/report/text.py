"""How words and numbers are written: the same in the page, the terminal, Markdown and CSV."""

import math
import re

MISSING = "–"

# Control characters can drive a terminal, lone surrogates cannot be written as UTF-8, and directional overrides make a
# line read differently from what it says. Tab and newline are kept: configurations need them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def clean(text: str) -> str:
    """`text` with every character that could act instead of being read replaced by U+FFFD."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))


def clean_line(text: str) -> str:
    """`clean` on one line: white space of any kind becomes one space."""
    return " ".join(re.split(r"[^\S\u00a0\u202f]+", clean(text))).strip()


def escape_markdown(word: str) -> str:
    """A line that Markdown shows as it stands, in a table too."""
    marked = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", word.replace("&", "&amp;").replace("<", "&lt;"))
    return marked.replace(">", "&gt;")


def shorten(text: str, length: int) -> str:
    """At most `length` characters, the last one an ellipsis if something was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def number(value: float, unit: str = "%") -> str:
    """A score without its unit: one decimal for percentages, otherwise four significant digits."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.1f}" if unit == "%" else f"{value:.4g}"
    return text.replace("-", "−")


def signed(value: float, unit: str = "%") -> str:
    """A difference without its unit, with its sign; one that rounds to zero has none."""
    shown = number(value, unit)
    return f"+{shown}" if value > 0 and shown.strip("0.") else shown


def with_unit(value: float, unit: str) -> str:
    """A score with its unit, e.g. "61.2 %", that no line break separates."""
    return f"{number(value, unit)}\u00a0{unit}".rstrip()


def interval(low: float, high: float, unit: str = "%") -> str:
    """An interval without its unit, e.g. "60.0 to 62.4", that no line break separates."""
    return f"{number(low, unit)}\u00a0to\u00a0{number(high, unit)}"


def count(value: float | None) -> str:
    """A count with thin spaces between thousands, e.g. "1 281 167"."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """Wall time in its two largest units, e.g. "1 h 05 min"."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(megabytes: float | None) -> str:
    """Memory in MB, or in GB from 1000 MB on."""
    if megabytes is None or not math.isfinite(megabytes):
        return MISSING
    return f"{megabytes:.0f} MB" if megabytes < 999.5 else f"{megabytes / 1000:.1f} GB"


def rate(per_second: float | None) -> str:
    """Throughput: a count, with one decimal below ten."""
    if per_second is None or not math.isfinite(per_second):
        return MISSING
    return f"{per_second:.1f}" if per_second < 10 else count(per_second)


def join(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
