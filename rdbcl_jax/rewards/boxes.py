"""Bounding boxes: parsing them without trust, and a score that extra boxes lower."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from rdbcl_jax.json_files import each_once
from rdbcl_jax.rewards.text import seen, unwrapped

MAX_BOXES = 100  # in one answer; also bounds the cost of matching
_NARROWEST = 1e-6  # a side of a box: its area stays above 0
_SHARES = (1.0, 1.0)  # the size to which shares of a picture are relative


@dataclasses.dataclass(frozen=True)
class GoldBoxes:
    boxes: np.ndarray  # float64 [n, 4]: left, top, right, bottom in pixels
    size: tuple[float, float]  # width, height; infinite where the gold answer does not say


def prepare(gold: str) -> GoldBoxes:
    """Parses `[[x1, y1, x2, y2], …]` or `{"size": [width, height], "boxes": […]}`, in JSON.

    With a size, boxes must lie inside the image. No box at all (`[]`) is a legal gold answer: it
    says that nothing is there, and only the answer `[]` agrees with it.

    Raises:
      ValueError: anything else, or boxes that are not finite, ordered and inside the image.
    """
    value, said = _listed(from_json(gold))
    size = size_in(said) or (math.inf, math.inf)
    return GoldBoxes(_checked(value, size), size)


def _listed(value) -> tuple:
    """The boxes of `{"size": …, "boxes": …}`, and the size; None where it is not said."""
    if isinstance(value, dict) and "boxes" in value:
        if value.keys() & {"bbox_2d", "bbox"}:
            raise ValueError("expected either boxes or one box, found both")
        return value["boxes"], value.get("size")
    return value, None


def size_in(value: Any) -> tuple[float, float] | None:
    """Of `[width, height]`; None where there is none.

    Raises:
      ValueError: it is no size.
    """
    if value is None:
        return None
    if not (isinstance(value, list | tuple) and len(value) == 2 and min(map(side, value)) > 0):
        raise ValueError(f"expected a size [width, height] in pixels, found {value!r}")
    return side(value[0]), side(value[1])


def rescaled(gold: str, picture: tuple[int, int], frame: tuple[int, int]) -> str:
    """The gold boxes in other coordinates, in JSON, with the size in which answers must lie.

    Args:
      picture: width and height of the coordinates that the gold is in, unless it says a size, or
        is in shares of the picture: all of it lies within 1, where no box in pixels does.
      frame: width and height of the new ones.
    Raises:
      ValueError: a box that does not lie in the picture.
    """
    value, said = _listed(from_json(gold))
    width, height = size_in(said) or (_SHARES if _are_shares(value) else picture)
    found = _checked(value, (width, height)) * np.tile([frame[0] / width, frame[1] / height], 2)
    return json.dumps({"size": [*frame], "boxes": [_whole(box, frame) for box in found]})


def _are_shares(value: Any) -> bool:
    """Whether the boxes of a gold answer are in shares of the picture, from 0 to 1."""
    try:
        return len(_checked(value, _SHARES)) > 0
    except ValueError:
        return False


def unsized(gold: str) -> str:
    """Gold boxes or points without the size beside them, as they are asked for."""
    value = from_json(gold)
    named = isinstance(value, dict) and next((k for k in ("boxes", "points") if k in value), None)
    return json.dumps(value[named]) if named else gold


def _whole(box: np.ndarray, frame: tuple[int, int]) -> list[int]:
    """A box of whole coordinates, at least one wide and high."""
    left, top, right, bottom = map(round, box.tolist())
    left, top = min(left, frame[0] - 1), min(top, frame[1] - 1)
    return [left, top, max(right, left + 1), max(bottom, top + 1)]


def compare(answer: str, gold: GoldBoxes, threshold: float) -> float:
    """F1 of the best one-to-one matching of boxes with an IoU of at least `threshold`.

    2 · matched / (answered + gold), so that superfluous boxes cost as much as missing ones; 0 if
    any box is not finite, ordered and inside the image, or if there are more than MAX_BOXES.
    """
    try:
        boxes = _checked(_listed(from_json(answer))[0], gold.size)
    except ValueError:
        return 0.0
    if not len(boxes) or not len(gold.boxes):
        return float(len(boxes) == len(gold.boxes))
    allowed = iou(boxes, gold.boxes) >= threshold
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return 2.0 * float(allowed[rows, columns].sum()) / (len(boxes) + len(gold.boxes))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of `a` [m, 4] with every box of `b` [n, 4]: [m, n]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (a, b))
    return shared / (area_a[:, None] + area_b[None, :] - shared)


def from_json(text: str) -> Any:
    """Boxes or points in JSON, in a code block or in round brackets."""
    text = _unfenced(seen(text))
    for json_text in (text, _as_lists(text)):
        try:
            return json.loads(json_text, object_pairs_hook=each_once)
        except (ValueError, RecursionError):
            continue
    raise ValueError(f"expected boxes in JSON, found {text[:80]!r}")


def _unfenced(text: str) -> str:
    """The text between the marks of a code block, if it is one."""
    if text.startswith("```") and text.endswith("```") and len(text) >= 6:
        return text[3:-3].strip().removeprefix("json").strip()
    return unwrapped(text)


def _as_lists(text: str) -> str:
    """Boxes in round brackets, or side by side, as one JSON list."""
    if set(text) - set("0123456789.,-+eE()[] "):
        return text
    text = text.translate(str.maketrans("()", "[]"))
    return f"[{text}]" if "]," in text.replace(" ", "") and not text.startswith("[[") else text


class Kind(NamedTuple):
    """Of places: what one is called, and several; its names in an object; its coordinates; how many
    an answer may have."""

    name: str
    several: str
    keys: tuple[str, ...]
    coordinates: tuple[str, ...]
    most: int


_BOX = Kind("box", "boxes", ("bbox_2d", "bbox"), ("x1", "y1", "x2", "y2"), MAX_BOXES)


def each(value: Any, kind: Kind) -> Iterator[list]:
    """The coordinates of one place, of a list of places, or of objects that hold one each.

    Raises:
      ValueError: too many, or something else.
    """
    one = not isinstance(value, list) or not any(isinstance(item, list | dict) for item in value)
    if one and value != []:
        value = [value]
    if len(value) > kind.most:
        raise ValueError(f"expected at most {kind.most} {kind.several}, found {len(value)}")
    for item in value:
        if isinstance(item, dict):
            item, *others = [item[name] for name in kind.keys if name in item] or [None]
            if any(other != item for other in others):
                found = f"{item!r} and {others}"
                raise ValueError(f"expected one {kind.name} in an object, found {found}"[:200])
        if not isinstance(item, list) or len(item) != len(kind.coordinates):
            form = f"[{', '.join(kind.coordinates)}]"
            raise ValueError(f"expected a {kind.name} {form}, found {item!r}"[:200])
        yield item


def _checked(value, size: tuple[float, float]) -> np.ndarray:
    """Boxes [n, 4] from one box, a list of boxes, or a list of objects with a `bbox_2d`."""
    boxes = [_box(item, *size) for item in each(value, _BOX)]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _box(item: list, width: float, height: float) -> list[float]:
    left, top, right, bottom = map(real, item)
    inside = 0 <= left < right <= width and 0 <= top < bottom <= height
    if not inside or min(right - left, bottom - top) < _NARROWEST:
        raise ValueError(
            f"box {item}: expected 0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}"
        )
    return [left, top, right, bottom]


def side(value: Any) -> float:
    """Of a picture, as `real`; infinite where it is not known."""
    return math.inf if value == math.inf else real(value)


def real(value: Any) -> float:
    """A finite float below 1e6 (so that areas stay exact and finite)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e6 < value < 1e6:
        raise ValueError(f"expected a finite number of pixels, found {value!r}"[:200])
    return float(value)
