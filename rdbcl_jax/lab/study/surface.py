"""A curve that several settings share is a surface: where it is high, and how forgiving it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rdbcl_jax.lab.study.results import CurvePoint, StudyResults

WITHIN = 0.05  # below its best, where a point counts as good; as accuracies are

Key = tuple[str, float]  # setting, x


class Surface(NamedTuple):
    """The study's metric, mean over seeds, NaN where nothing was run.

    Attributes:
      settings, points: names of the rows and columns.
      means: arm → [settings, points]. An arm with one point, such as one without a KL term, is a
        row of one column.
    """

    settings: Sequence[str]
    points: Sequence[float]
    means: Mapping[str, np.ndarray]

    def best(self, arm: str) -> float:
        return float(np.nanmax(self.means[arm]))

    def bests(self, arm: str) -> np.ndarray:
        """An arm's best in each setting; NaN where nothing was run."""
        return np.fmax.reduce(self.means[arm], axis=1)

    def forgiving(self, arm: str) -> float:
        """The share of an arm's points within `WITHIN` of its own best."""
        found = self.means[arm][np.isfinite(self.means[arm])]
        return float((found >= found.max() - WITHIN).mean())


def surfaces(numbers: StudyResults) -> Iterator[tuple[str, Surface]]:
    """Every curve that was run in several settings, by its name."""
    for name in dict.fromkeys(cell.curve for cell in numbers.curves):
        cells = [cell for cell in numbers.curves if cell.curve == name and cell.seeds]
        if len({cell.setting for cell in cells}) > 1:
            yield name, _surface(cells, numbers.metric)


def _surface(cells: Sequence[CurvePoint], metric: str) -> Surface:
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    points = sorted({cell.x for cell in cells})
    found: dict[str, dict[Key, float]] = {}
    for cell in cells:
        values = [v for v in cell.metrics.get(metric, []) if v is not None]
        mean = float(np.mean(values)) if values else math.nan
        found.setdefault(cell.arm, {})[cell.setting, cell.x] = mean
    return Surface(settings, points, {arm: _grid(v, settings, points) for arm, v in found.items()})


def _grid(
    values: Mapping[Key, float], settings: Sequence[str], points: Sequence[float]
) -> np.ndarray:
    return np.array([[values.get((s, x), math.nan) for x in points] for s in settings])
