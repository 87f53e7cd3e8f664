"""Drawing: arrays in, a matplotlib Figure out. No pyplot, no global state, no files.

Panels are small (one column of the report, or a phone's width) and leave legends to the page.
Ink, muted and grid colours are named here so that the page can swap them in a dark theme.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    MaxNLocator,
)

from rdbcl_jax.reporting.numbers import significant

INK, MUTED, GRID = "#1d232a", "#68727d", "#e1e5ea"
PALETTE = ("#4477aa", "#ee7733", "#228833", "#cc3377", "#bbaa33", "#33aacc", "#9966cc", "#888888")
ACCENT, SECOND = PALETTE[0], PALETTE[1]
DENSITY = LinearSegmentedColormap.from_list("density", [ACCENT + "00", ACCENT + "ff"])
PANEL, WIDE = (3.5, 2.1), (4.6, 2.6)  # inches
MAX_POINTS = 500  # of a curve; longer ones are averaged in bins

PERCENT = FuncFormatter(lambda value, _: significant(100 * value, 10))  # of fractions

Curve = tuple[np.ndarray, np.ndarray]


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per name, safe for colour-blind readers; a ramp where the names are many."""
    palette: Sequence[str] = PALETTE
    if len(names) > len(PALETTE):
        palette = [to_hex(c) for c in colormaps["viridis"](np.linspace(0.12, 0.86, len(names)))]
    return dict(zip(names, palette, strict=False))


# ------------------------------------------------------------------------------ one run


def png(figure: Figure) -> bytes:
    """The figure as a file, for who has no page to draw in."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def portability(steps, values: Mapping[str, np.ndarray], limits: Mapping[str, Sequence]) -> Figure:
    """Histograms over time of per-sample values (RP, β) of one task, their mean as a line."""
    figure = Figure(figsize=(PANEL[0], 1.55 * len(values) + 0.25), layout="constrained")
    axes = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, y) in zip(axes, values.items(), strict=True):
        style(ax)
        _density(ax, np.asarray(steps), np.asarray(y, float), limits[name])
        ax.set_ylabel(name, color=MUTED, rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("step of the task")
    return figure


def retention(matrix: np.ndarray, tasks: Sequence[str]) -> Figure:
    """Accuracy on each task along the sequence; dotted before the task is trained."""
    figure, ax = panel(WIDE)
    x = np.arange(len(matrix))
    for j, colour in enumerate(colours(tasks).values()):
        ax.plot(x[: j + 2], matrix[: j + 2, j], ":", color=colour, lw=1.4)
        ax.plot(x[j + 1 :], matrix[j + 1 :, j], "-", color=colour, lw=2)
        ax.plot(x, matrix[:, j], "o", color=colour, ms=3, mew=0)
        ax.plot(j + 1, matrix[j + 1, j], "o", color=colour, ms=7, mew=0)
    _row_axis(ax, tasks)
    return figure


def before_and_after(matrix: np.ndarray, tasks: Sequence[str]) -> Figure:
    """Per task: base model (ring), just trained (pale dot), end of the run (dot)."""
    figure, ax = panel(WIDE)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=GRID, lw=0.7)
    reached = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    last = matrix[reached[-1]] if len(reached) else matrix[0]
    for j, colour in enumerate(colours(tasks).values()):
        base, trained, end = matrix[0, j], matrix[j + 1, j], last[j]
        y = len(tasks) - 1 - j
        ax.plot([base, trained], [y, y], color=colour, lw=1.2, alpha=0.5)
        ax.plot([trained, end], [y, y], color=colour, lw=3.5, alpha=0.35, solid_capstyle="round")
        ax.plot(base, y, "o", mec=colour, mfc="none", ms=6, mew=1.4)
        ax.plot(trained, y, "o", color=colour, ms=6, mew=0, alpha=0.5)
        ax.plot(end, y, "o", color=colour, ms=8, mew=0)
    ax.set_yticks(range(len(tasks)), [_short(task, 24) for task in tasks][::-1])
    ax.set_ylim(-0.6, len(tasks) - 0.4)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _percent(ax.xaxis)
    return figure


def held_out(steps: np.ndarray, accuracies: np.ndarray, tasks: Sequence[str]) -> Figure:
    """Accuracy [n, H] on tasks that are not learned, along the run."""
    figure, ax = panel(WIDE)
    for column, colour in zip(accuracies.T, colours(tasks).values(), strict=True):
        ax.plot(steps, column, "-o", color=colour, lw=1.7, ms=3.5, mew=0)
    ax.set_xlabel("steps of the run")
    _percent(ax.yaxis)
    return figure


def accuracy_matrix(matrix: np.ndarray, tasks: Sequence[str]) -> Figure:
    """The accuracy matrix as a heat map with its numbers, in percent (for papers and slides)."""
    T = len(tasks)
    figure = Figure(figsize=(0.75 * T + 1.6, 0.42 * (T + 1) + 0.9), layout="constrained")
    ax = figure.add_subplot()
    ax.imshow(np.where(np.isfinite(matrix), matrix, 0), cmap=DENSITY, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        text = f"{100 * value:.1f}" if np.isfinite(value) else "–"
        weight = "bold" if i == j + 1 else "normal"
        colour = "white" if value > 0.6 else INK
        ax.text(j, i, text, ha="center", va="center", color=colour, weight=weight, fontsize=9)
    ax.set_xticks(range(T), map(plain, tasks))
    ax.set_yticks(range(T + 1), ["base", *(f"after {plain(task)}" for task in tasks)])
    ax.tick_params(length=0, colors=INK, labelsize=9, top=True, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.axhline(0.5, color="white", lw=3)
    return figure


# ------------------------------------------------------------------------------ several runs


def averages(groups: Mapping[str, Sequence[np.ndarray]], tasks: Sequence[str]) -> Figure:
    """Mean accuracy of each row: one thin line per seed, the group's mean and its sd as a band."""
    figure, ax = panel(WIDE)
    for rows, colour in zip(groups.values(), colours(list(groups)).values(), strict=True):
        for row in rows:
            style = "-" if np.isfinite(row).all() else ":"
            ax.plot(row, style, color=colour, lw=0.8, alpha=0.5)
        full = np.array([row for row in rows if np.isfinite(row).all()])
        if len(full):
            x, mean = np.arange(full.shape[1]), full.mean(axis=0)
            ax.plot(x, mean, color=colour, lw=2, marker="o", ms=4, mew=0)
            if len(full) > 1:
                sd = full.std(axis=0, ddof=1)
                ax.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.14, lw=0)
    _row_axis(ax, tasks)
    return figure


def final_by_task(groups: Mapping[str, np.ndarray], tasks: Sequence[str]) -> Figure:
    """Accuracy after the last task: a small dot per seed, a bar at the group's mean."""
    figure, ax = panel(WIDE)
    width = 0.8 / max(len(groups), 1)
    for g, (rows, colour) in enumerate(
        zip(groups.values(), colours(list(groups)).values(), strict=True)
    ):
        x = np.arange(len(tasks)) + (g - (len(groups) - 1) / 2) * width
        for row in rows:
            ax.plot(x, row, "o", color=colour, ms=3.5, mew=0, alpha=0.65)
        if len(rows):
            segments = [
                [(a - 0.3 * width, m), (a + 0.3 * width, m)]
                for a, m in zip(x, np.mean(rows, axis=0), strict=True)
            ]
            ax.add_collection(LineCollection(segments, colors=colour, lw=2.2))
    _name_ticks(ax, [_short(task) for task in tasks])
    ax.set_xlim(-0.6, len(tasks) - 0.4)
    _percent(ax.yaxis)
    return figure


# ------------------------------------------------------------------------------ pieces


def panel(size: tuple[float, float] = PANEL) -> tuple[Figure, Axes]:
    """An empty figure with one styled axes."""
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.add_subplot()
    style(ax)
    return figure, ax


def _name_ticks(ax: Axes, names: Sequence[str]) -> None:
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(names)), names, **(slanted if sum(map(len, names)) > 60 else {}))


def _short(name: str, most: int = 16) -> str:
    return plain(name if len(name) <= most else name[: most - 1] + "…")


def plain(name: str) -> str:
    """A name that is drawn as it is: dollars set no formula."""
    return name.replace("$", r"\$")


def _percent(axis: Axis) -> None:
    """Fractions, in percent; where all of them are 0 the axis does not go below."""
    axis.set_major_formatter(PERCENT)
    low, high = axis.get_data_interval()
    if low == high == 0:
        setter = axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim
        setter(-0.05, 1.05)


def style(ax: Axes) -> None:
    """The house's look: no frame, few ticks, a faint grid."""
    ax.patch.set_alpha(0)
    ax.figure.patch.set_alpha(0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(GRID)
    ax.tick_params(length=0, colors=MUTED, labelsize=8)
    ax.xaxis.label.set(color=MUTED, fontsize=8)
    ax.grid(axis="y", color=GRID, lw=0.7)
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def _row_axis(ax: Axes, tasks: Sequence[str]) -> None:
    """The x axis of matrix rows, the y axis of accuracies in percent."""
    labels = ["base", *(f"+ {_short(task)}" for task in tasks)]
    _name_ticks(ax, labels)
    ax.set_xlim(-0.3, len(labels) - 0.7)
    _percent(ax.yaxis)


def thin(x: np.ndarray, y: np.ndarray, most: int = MAX_POINTS) -> Curve:
    """Averages in at most `most` bins of neighbours."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    finite = np.add.reduceat(np.isfinite(y).astype(float), edges)
    total = np.add.reduceat(np.nan_to_num(y, nan=0.0, posinf=0.0, neginf=0.0), edges)
    mean = np.divide(total, finite, out=np.full(most, np.nan), where=finite > 0)
    return np.add.reduceat(np.asarray(x, float), edges) / counts, mean


def moving_average(y: np.ndarray, half: int) -> np.ndarray:
    """Mean over up to 2·half + 1 values, NaN left out: symmetric at the start, so that the first
    value stays as it is, and over the values that are left at the end."""
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(y))
    reach = np.minimum(index, half)
    low, high = index - reach, np.minimum(index + reach + 1, len(y))
    n = count[high] - count[low]
    return np.divide(total[high] - total[low], n, out=np.full(len(y), np.nan), where=n > 0)


def _density(ax: Axes, x: np.ndarray, y: np.ndarray, limits: Sequence[float]) -> None:
    """Each column: the histogram of y at that time, darkest at its mode."""
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    if not len(x):
        return
    columns = int(min(60, x.max() - x.min() + 1, 4 + len(x) // 48))  # a few samples a cell
    extent = (x.min() - 0.5, x.max() + 0.5, *limits)
    counts, xs, _ = np.histogram2d(
        x, np.clip(y, limits[0], limits[1]), bins=(columns, 24), range=(extent[:2], extent[2:])
    )
    share = counts / np.maximum(counts.max(axis=1, keepdims=True), 1)
    image = DENSITY(np.sqrt(share.T) * 0.9)
    ax.imshow(image, extent=extent, origin="lower", aspect="auto", interpolation="none")
    which = np.clip(np.digitize(x, xs) - 1, 0, columns - 1)
    n = np.bincount(which, minlength=columns)
    total = np.bincount(which, weights=y, minlength=columns)
    mean = np.divide(total, n, out=np.full(columns, np.nan), where=n > 0)
    ax.plot((xs[:-1] + xs[1:]) / 2, mean, color=SECOND, lw=1.7)
    ax.set(xlim=extent[:2], ylim=limits)


def pooled_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits that hold nearly all values, with a margin; never empty."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.05 * (high - low) or max(0.05 * abs(high), 0.01)
    return float(low - margin), float(high + margin)
