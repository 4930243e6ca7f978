"""Numbers as text: what the terminal, Markdown, pages and pictures all print."""

import math

DASH = "–"


def number(value: float, form: str) -> str:
    """Returns the number in a format such as `.2f`, or a dash if it was not measured."""
    return DASH if math.isnan(value) else format(value, form)


def percent(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Returns a fraction in percent, with the longer half of its interval: `77.0 ±0.6`."""
    return number(100 * value, ".1f") + _half(100 * value, 100 * low, 100 * high, ".1f")


def points(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Returns a difference of fractions in percentage points: `+1.21 ±0.19`."""
    rounded = round(100 * value, 2) + 0.0  # adding 0 turns -0.00 into 0.00
    signed = number(rounded, "+.2f").replace("-", "−")
    return signed + _half(100 * value, 100 * low, 100 * high, ".2f")


def tokens(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Returns tokens per target call, or a speed-up: `2.61 ±0.04`."""
    return number(value, ".2f") + _half(value, low, high, ".2f")


def _half(value, low, high, form):
    half = max(value - low, high - value)
    return f" ±{half:{form}}" if math.isfinite(half) else ""


def interval(low: float, high: float) -> str:
    """Returns a difference's interval in points, `−0.77 to +1.83`, or "" if there is none."""
    finite = math.isfinite(low) and math.isfinite(high)
    return unbroken(f"{points(low)} to {points(high)}") if finite else ""


def unbroken(text: str) -> str:
    """Returns the text with spaces at which no line breaks."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
