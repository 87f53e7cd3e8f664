"""Numbers as text: a real minus, no −0.0, and a dash for what is missing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

DASH = "–"


def fixed(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """−0.25 with two digits → "−0.25"."""
    return _text(value, f".{digits}f", signed)


def significant(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """0.012345 → "0.0123"."""
    return _text(value, f".{digits}g", signed)


def percent(value: float | None, *, signed: bool = False, digits: int = 1) -> str:
    """0.7134 → "71.3"."""
    return fixed(None if value is None else 100 * value, digits, signed=signed)


def spread(values: Sequence[float] | np.ndarray, *, signed: bool = False) -> str:
    """Mean ± sd (n − 1) in percent; the mean alone for one value."""
    values = np.asarray(values, float)
    if not len(values):
        return DASH
    mean = percent(float(values.mean()), signed=signed)
    return f"{mean} ± {percent(float(values.std(ddof=1)))}" if len(values) > 1 else mean


def duration(seconds: float) -> str:
    """3725 → "1h 02m", 125 → "2m 05s", 7 → "7s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m {seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"


def moment(seconds: float) -> str:
    """Seconds since the epoch → "25 November, 14:03:09", in the machine's own time."""
    at = time.localtime(seconds)
    return f"{at.tm_mday} {time.strftime('%B, %H:%M:%S', at)}"


def _text(value: float | None, form: str, signed: bool) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:{form}}"
    if float(text) == 0:
        text = text.lstrip("-")
    return ("+" if signed and not text.startswith("-") else "") + text.replace("-", "−")
