"""Verifier of points: each in a box of its own, or near a gold point of its own."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from rdbcl_jax.rewards import boxes

MAX_POINTS = 100  # in one answer
_POINT = boxes.Kind("point", "points", ("point_2d", "point"), ("x", "y"), MAX_POINTS)


@dataclasses.dataclass(frozen=True)
class GoldPlaces:
    """Where points may lie: in `boxes` [n, 4], or near `points` [n, 2]; one of them is empty.
    `size` is that of the picture, infinite where it is not said."""

    boxes: np.ndarray
    points: np.ndarray
    size: tuple[float, float]


def prepare(gold: str) -> GoldPlaces:
    """Boxes as verifier `boxes` reads them, or `{"size": [width, height], "points": [[x, y], …]}`.

    Raises:
      ValueError: anything else; points without a size, by which nearness is measured.
    """
    value = boxes.from_json(gold)
    if not _holds_points(value):
        found = boxes.prepare(gold)
        return GoldPlaces(found.boxes, np.zeros((0, 2)), found.size)
    points, size = _sized(value)
    if size is None or math.inf in size:
        raise ValueError(f"expected the size of the picture beside points, found {gold[:80]!r}")
    return GoldPlaces(np.zeros((0, 4)), _points(points, size), size)


def _holds_points(value: Any) -> bool:
    """Whether a gold answer holds points, of any form that an answer may have, and no boxes."""
    if isinstance(value, dict):
        return bool(value.keys() & {"points", "point_2d", "point"})
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return _holds_points(value[0])
    return isinstance(value, list) and len(value) == 2


def _sized(value: Any) -> tuple[Any, tuple[float, float] | None]:
    """The points of a gold answer, and the size that they are relative to, where it is said."""
    if isinstance(value, dict) and "points" in value:
        return value["points"], boxes.size_in(value.get("size"))
    return value, None


def compare(answer: str, gold: GoldPlaces, reach: float) -> float:
    """F1 of the best one-to-one matching of points with gold boxes that they lie in, or with gold
    points no farther than `reach` of the picture's diagonal.

    Superfluous points cost as much as missing ones. An answer is `[x, y]`, a list of such, or of
    objects with `point_2d` or `point`; 0 if any point is not finite, lies outside the picture, or
    if there are more than MAX_POINTS.
    """
    try:
        value = boxes.from_json(answer)
        value = value["points"] if isinstance(value, dict) and "points" in value else value
        points = _points(value, gold.size)
    except ValueError:
        return 0.0
    count = len(gold.boxes) + len(gold.points)
    if not len(points) or not count:
        return float(len(points) == count)
    allowed: np.ndarray
    if len(gold.boxes):
        low, high = gold.boxes[None, :, :2], gold.boxes[None, :, 2:]
        allowed = np.all((low <= points[:, None]) & (points[:, None] <= high), axis=-1)
    else:
        away = np.linalg.norm(points[:, None] - gold.points[None], axis=-1)
        allowed = away <= reach * math.hypot(*gold.size)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return 2.0 * float(allowed[rows, columns].sum()) / (len(points) + count)


def rescaled(gold: str, picture: tuple[int, int], frame: tuple[int, int]) -> str:
    """The gold in other coordinates; arguments as of `boxes.rescaled`. Points need no size."""
    value = boxes.from_json(gold)
    if not _holds_points(value):
        return boxes.rescaled(gold, picture, frame)
    points, size = _sized(value)
    width, height = size or picture
    found = _points(points, (width, height)) * [frame[0] / width, frame[1] / height]
    return json.dumps({"size": [*frame], "points": np.rint(found).astype(int).tolist()})


def _points(value: Any, size: tuple[float, float]) -> np.ndarray:
    """Points [n, 2] from one point, a list of points, or of objects with a point."""
    points = [_point(item, *size) for item in boxes.each(value, _POINT)]
    return np.array(points, np.float64).reshape(-1, 2)


def _point(item: list, width: float, height: float) -> list[float]:
    x, y = map(boxes.real, item)
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"point {item}: expected 0 <= x <= {width} and 0 <= y <= {height}")
    return [x, y]
