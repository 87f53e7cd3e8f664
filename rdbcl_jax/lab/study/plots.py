"""A study's pictures, from the numbers of study.json: they stand alone, with their own legends."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rdbcl_jax.lab.study.results import CellResults, CurvePoint, StudyResults
from rdbcl_jax.lab.study.surface import Surface, surfaces
from rdbcl_jax.reporting import metric_table, plots
from rdbcl_jax.reporting.metric_table import STEP, STUDY, Place
from rdbcl_jax.reporting.plots import INK, MUTED

LEARNING = {  # row of panels → part of a cell, key, metric
    "validation": ("progress", "accuracy", STUDY["validation"]),
    "sampled": ("learning", "accuracy", STEP["accuracy"]),
    "entropy": ("learning", "entropy", STEP["entropy"]),
}
COSTS, PATH_COSTS = ("step", "sampled", "tokens"), ("step", "learned")


def draw(numbers: StudyResults) -> dict[str, Figure]:
    """File name → picture, for all that the study has run so far."""
    found: dict[str, Figure] = {}
    for setting in numbers.settings:
        cells = [c for c in numbers.arms if c.setting == setting and c.seeds]
        suffix = f"-{_slug(setting)}" if len(numbers.settings) > 1 else ""
        if cells:
            found[f"arms{suffix}"] = arms(cells, numbers)
            found[f"tasks{suffix}"] = tasks(cells)
        if any(cell.progress for cell in cells):
            found[f"learning{suffix}"] = learning(cells)
        if any(cell.tradeoff for cell in cells):
            found[f"tradeoff{suffix}"] = tradeoff([c for c in cells if c.tradeoff])
        points = [c for c in numbers.curves if c.setting == setting and c.seeds]
        for name in dict.fromkeys(c.curve for c in points):
            found[f"curve-{_slug(name)}{suffix}"] = curve([c for c in points if c.curve == name])
    for name, one in surfaces(numbers):
        found[f"surface-{_slug(name)}"] = surface(name, one, metric_table.of(numbers.metric).label)
    return found


def arms(cells: Sequence[CellResults], numbers: StudyResults) -> Figure:
    """The metric of every arm, and its paired difference to the baseline, seeds as dots."""
    figure, (left, right) = _panels(2, (8.4, 0.9 + 0.36 * len(cells)), sharey=True)
    metric = numbers.metric
    for row, (cell, colour) in enumerate(zip(cells, _colours(cells).values(), strict=True)):
        y = len(cells) - 1 - row
        values = _finite(cell.metrics.get(metric, []))
        _dots(left, values, y, colour)
        if len(values):
            sd = values.std(ddof=1) if len(values) > 1 else 0.0
            _bar(left, values.mean(), values.mean() - sd, values.mean() + sd, y, colour)
        found = cell.difference
        if found and found.mean is not None:
            _dots(right, np.array(found.values), y, colour)
            low, high = (found.mean if e is None else e for e in (found.low, found.high))
            _bar(right, found.mean, low, high, y, colour)
    left.set_yticks(range(len(cells)), [_label(cell) for cell in cells][::-1])
    left.set_ylim(-0.6, len(cells) - 0.4)
    right.axvline(0, color=MUTED, lw=1, zorder=1)
    title = metric_table.of(metric).heading
    left.set_xlabel(f"{title}, %: seeds, mean ± sd")
    right.set_xlabel(f"{title} − {numbers.baseline}, points: seeds, mean, 95 % bootstrap")
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", color=plots.GRID, lw=0.7)
        ax.xaxis.set_major_formatter(plots.PERCENT)
        ax.xaxis.get_major_locator().set_params(integer=False)
    left.tick_params(axis="y", colors=INK)
    return figure


def curve(cells: Sequence[CurvePoint]) -> Figure:
    """Last, plasticity and forgetting over a swept field: seeds as dots, means as lines."""
    metrics = metric_table.at(Place.CURVE)
    figure, axes = _panels(len(metrics), (9.6, 3.0))
    names = list(dict.fromkeys(cell.arm for cell in cells))
    for ax, (name, metric) in zip(axes, metrics.items(), strict=True):
        for arm, colour in plots.colours(names).items():
            points = sorted((c for c in cells if c.arm == arm), key=lambda c: c.x)
            values = [_finite(c.metrics.get(name, [])) for c in points]
            drawn = [(c.x, v) for c, v in zip(points, values, strict=True) if len(v)]
            for x, v in drawn:
                ax.plot([x] * len(v), v, "o", color=colour, ms=3.5, mew=0, alpha=0.45)
            ax.plot(*zip(*((x, v.mean()) for x, v in drawn), strict=True), "-o", color=colour, ms=5)
        ax.set_title(metric.axis, fontsize=9, color=INK, loc="left")
        ax.set_xlabel(cells[0].curve)
        ax.yaxis.set_major_formatter(plots.PERCENT)
        _spaced(ax, sorted({cell.x for cell in cells}))
    _legend(figure, plots.colours(names))
    return figure


def surface(name: str, found: Surface, metric: str) -> Figure:
    """The metric over settings (rows) and a curve's points (columns), a panel for each arm; the
    best of each arm is framed."""
    figure, axes = _panels(len(found.means), (2.5 * len(found.means) + 0.8, 2.9), sharey=True)
    values = np.concatenate([100 * m[np.isfinite(m)] for m in found.means.values()])
    colours = {"cmap": "YlGnBu", "vmin": values.min(), "vmax": values.max()}
    for ax, (arm, means) in zip(axes, found.means.items(), strict=True):
        shown = [i for i in range(len(found.points)) if np.isfinite(means[:, i]).any()]
        part = 100 * means[:, shown]
        ax.imshow(part, aspect="auto", **colours)
        _values(ax, part, dark_from=(values.min() + values.max()) / 2)
        ax.grid(visible=False)
        ax.set_xticks(range(len(shown)), [f"{found.points[i]:g}" for i in shown])
        ax.set_yticks(range(len(found.settings)), found.settings)
        ax.set_xlabel(name)
        ax.set_title(f"{arm}: {metric}, %", fontsize=9, color=INK, loc="left")
    return figure


def tasks(cells: Sequence[CellResults]) -> Figure:
    """Accuracy on each task along the sequence, mean over seeds: one panel per task."""
    names = cells[0].tasks
    same = [cell for cell in cells if cell.tasks == names]
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, axes = _panels(columns, (3.1 * columns, 2.0 * rows + 0.4), rows=rows, sharey=True)
    for j, (name, ax) in enumerate(zip(names, axes, strict=False)):
        ax.axvline(j + 1, color=MUTED, lw=1, ls=":", zorder=1)
        for cell, colour in zip(cells, _colours(cells).values(), strict=True):
            if cell in same:
                mean = np.mean([np.array(a)[:, j] for a in cell.accuracy], axis=0)
                ax.plot(mean, "-o", color=colour, ms=3, lw=1.6, mew=0)
        ax.set_title(f"{name}, %", fontsize=9, color=INK, loc="left")
        ax.set_xticks(range(len(names) + 1), ["base", *range(1, len(names) + 1)])
        ax.yaxis.set_major_formatter(plots.PERCENT)
        if j // columns == rows - 1:
            ax.set_xlabel("tasks learned (dotted: this one)")
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    _legend(figure, _colours(cells))
    return figure


def learning(cells: Sequence[CellResults]) -> Figure:
    """What was measured while the policy learned, means over seeds, against measures of cost: a
    row of panels for each of `LEARNING` that there is. Arms that sample nothing have no curve over
    sampled responses."""
    colours = _colours(cells)  # of all, so that an arm looks the same in every picture
    curves = {name: _curves(cells, part, key) for name, (part, key, _) in LEARNING.items()}
    rows = [name for name, found in curves.items() if found]
    size = (9.6, 0.6 + 2.1 * len(rows))
    figure, axes = _panels(len(COSTS), size, rows=len(rows), sharey="row")
    places = itertools.product(rows, COSTS)
    for ax, (name, cost) in zip(axes, places, strict=True):
        _, key, metric = LEARNING[name]
        for arm, found in curves[name].items():
            if any(found[cost]):
                _draw_curve(ax, found[cost], found[key], name == "validation", colours[arm])
        if key == "accuracy":
            ax.yaxis.set_major_formatter(plots.PERCENT)
        if name == rows[-1]:
            ax.set_xlabel(STUDY[cost].heading)
        if cost == COSTS[0]:
            ax.set_title(metric.axis, fontsize=9, color=INK, loc="left")
    shown = {arm for found in curves.values() for arm in found}
    _legend(figure, {arm: colour for arm, colour in colours.items() if arm in shown})
    return figure


def _curves(cells: Sequence[CellResults], part: str, key: str) -> dict[str, Mapping]:
    return {cell.arm: getattr(cell, part) for cell in cells if key in getattr(cell, part)}


def _draw_curve(ax: Axes, x, y, points: bool, colour: str) -> None:
    y = np.array(y, float)
    if points:
        ax.plot(x, y, "-o", color=colour, ms=3, lw=1.4, mew=0)
    else:
        ax.plot(x, plots.moving_average(y, max(1, len(y) // 60)), color=colour, lw=1.4)


def tradeoff(cells: Sequence[CellResults]) -> Figure:
    """Old tasks against new ones along training, and both against its cost; means over seeds, a
    pale dot for each seed's end, the base model as a ring."""
    figure = Figure(figsize=(10.2, 4.6), layout="constrained")
    axes = figure.subplot_mosaic(
        [["both", "new step", "new learned"], ["both", "old step", "old learned"]],
        width_ratios=(1.5, 1, 1),
    )
    for ax in axes.values():
        plots.style(ax)
        ax.yaxis.set_major_formatter(plots.PERCENT)
        ax.set_ylim(-0.03, 1.03)
    for cell, colour in zip(cells, _colours(cells).values(), strict=True):
        path = {name: np.array(values, float) for name, values in cell.tradeoff["path"].items()}
        new, old = path["new"].mean(axis=0), path["old"].mean(axis=0)
        ax = axes["both"]
        ax.plot(path["new"][:, -1], path["old"][:, -1], "o", color=colour, ms=4, mew=0, alpha=0.4)
        ax.plot(new, old, "-", color=colour, lw=1.6, marker="o", ms=2.5)
        ax.plot(new[-1], old[-1], "D", color=colour, ms=7, mec="white", mew=1, zorder=5)
        ax.plot(new[0], old[0], "o", mec=INK, mfc="none", ms=8, zorder=6)
        for name, y in (("new", new), ("old", old)):
            for axis in PATH_COSTS:
                axes[f"{name} {axis}"].plot(path[axis], y, color=colour, lw=1.6)
            if path["generated"][-1] > 0:
                axes[f"{name} learned"].plot(path["generated"], y, ":", color=colour, lw=1.6)
    both = axes["both"]
    both.set_xlim(-0.03, 1.03)
    both.grid(axis="x", color=plots.GRID, lw=0.7)
    both.xaxis.set_major_formatter(plots.PERCENT)
    both.locator_params(axis="x", integer=False)
    both.set_xlabel("accuracy on the new tasks, % (ring: before, diamond: after)")
    both.set_title("accuracy on the old tasks, %", fontsize=9, color=INK, loc="left")
    for axis in PATH_COSTS:
        axes[f"old {axis}"].set_xlabel(STUDY[axis].heading)
        for name in ("new", "old"):
            ax = axes[f"{name} {axis}"]
            _costs_axis(ax, [np.array(c.tradeoff["path"][axis], float) for c in cells])
            ax.set_title(f"{name} tasks, %", fontsize=9, color=INK, loc="left")
    _legend(figure, _colours(cells))
    return figure


# ------------------------------------------------------------------------------ pieces


def _values(ax: Axes, values: np.ndarray, dark_from: float) -> None:
    """A heat map's numbers, the greatest framed; white on what is dark."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink, text = ("white" if value > dark_from else INK), f"{value:.1f}"
            ax.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
        if value == np.nanmax(values):
            corner = (column - 0.48, row - 0.48)
            ax.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, ec="#d1495b", lw=2))


def _panels(columns: int, size: tuple[float, float], *, rows: int = 1, sharey=False):
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for ax in axes:
        plots.style(ax)
    return figure, axes


def _costs_axis(ax: Axes, costs: Sequence[np.ndarray]) -> None:
    """Logarithmic from the first evaluation on, linear before: methods differ by factors."""
    first = min((c[c > 0].min() for c in costs if (c > 0).any()), default=1.0)
    ax.set_xscale("symlog", linthresh=first, linscale=0.4)
    last = max(c.max() for c in costs)
    shown = [m * 10.0**p for p in range(12) for m in (1, 3) if first <= m * 10.0**p <= last]
    ax.set_xticks([0.0, *shown], ["0", *map(_amount, shown)])
    ax.minorticks_off()


def _amount(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _label(cell: CellResults) -> str:
    return f"{cell.arm}  {cell.missing}".strip()


def _colours(cells: Sequence[CellResults]) -> dict[str, str]:
    return plots.colours([cell.arm for cell in cells])


def _finite(values: Sequence[float | None]) -> np.ndarray:
    return np.array([v for v in values if v is not None], float)


def _dots(ax: Axes, values: np.ndarray, y: float, colour: str) -> None:
    ax.plot(values, np.full(len(values), y), "o", color=colour, ms=5, mew=0, alpha=0.4)


def _bar(ax: Axes, mean: float, low: float, high: float, y: float, colour: str) -> None:
    ax.plot([low, high], [y, y], color=colour, lw=2.2, solid_capstyle="round")
    ax.plot(mean, y, "D", color=colour, ms=6, mec="white", mew=1, zorder=5)


def _spaced(ax: Axes, xs: Sequence[float]) -> None:
    """Near 0 as wide as far from it: swept fields are spaced like 0, 0.05, 0.1 … 2."""
    positive = [x for x in xs if x > 0]
    if len(positive) > 2 and positive[-1] > 8 * positive[0] and min(xs) >= 0:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.6)
        ax.set_xlim(0 - 0.15 * positive[0] if min(xs) == 0 else 0.9 * xs[0], 1.15 * xs[-1])
    ax.set_xticks(xs, [f"{x:g}" for x in xs])
    ax.minorticks_off()


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    handles = [figure.axes[0].plot([], [], color=c, lw=2.5)[0] for c in colours.values()]
    figure.legend(
        handles,
        list(colours),
        loc="outside lower center",
        ncols=min(len(colours), 4),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
