"""Values as people write them."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def shortest(values: np.ndarray) -> Any:
    """Narrow floats as the doubles with the fewest digits that round to them."""
    return np.asarray(values).astype("U32").astype(np.float64).tolist()


def written(value: Any) -> str:
    """A value as a person would write it: `3` for 3.0, `3.50` for a decimal, JSON for a list.

    Raises:
      ValueError: bytes that are no text, a number that is not finite, a value of another kind.
    """
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str | bytes):
        return json.dumps(_plain(value), ensure_ascii=False)
    plain = _plain(value)
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e16:
        return str(int(plain))
    return plain if isinstance(plain, str) else json.dumps(plain)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"expected text, found {len(value)} bytes that are no UTF-8") from None
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        midnight = value.time() == datetime.time()  # how tables hold a date
        return str(value.date() if midnight else value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, float | decimal.Decimal):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, found {value}")
        return float(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    raise ValueError(f"expected text, a number or a date, found {short(value)}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
