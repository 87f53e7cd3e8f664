"""`compare_runs(workdirs, out_dir)`: several runs as one HTML page, a Markdown and a LaTeX table.

Runs of one method and one configuration form a group, whatever their seeds. Numbers are mean ± sd
over a group's complete runs; runs that are not complete are listed and marked, never averaged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdbcl_jax.json_files import write_text
from rdbcl_jax.reporting import metric_table, plots
from rdbcl_jax.reporting.charts import Chart, Line, from_start, mean_curve
from rdbcl_jax.reporting.groups import Group, group_runs, paired, show
from rdbcl_jax.reporting.intervals import around, draws_over_records, over_seeds
from rdbcl_jax.reporting.metric_table import Place
from rdbcl_jax.reporting.numbers import DASH, percent, spread
from rdbcl_jax.reporting.page import panel, render
from rdbcl_jax.reporting.run_files import Run, read_run
from rdbcl_jax.reporting.text_tables import latex_escape, latex_table, markdown_table

PAIRED_NOTE = (
    "Mean ± sd of the differences between runs of the same seed, in points. The standard error of"
    " such a mean is sd / √n: with few seeds, a difference of one sd says little."
)


def compare_runs(
    workdirs: Sequence[str | os.PathLike],
    out_dir: str | os.PathLike,
    *,
    baseline: str | None = None,
    split: str = "test",
) -> Path:
    """Writes compare.html, compare.md and compare.tex into `out_dir`; returns the page's path.

    Args:
      workdirs: of the runs; unfinished ones are welcome and marked.
      baseline: label or method of the group to subtract in paired differences; default: the GRPO
        group, else the first.
      split: the one whose numbers are compared.

    Raises:
      ValueError: no workdir, one that is named twice, or a baseline that no group is called.
    """
    paths = [Path(workdir).resolve() for workdir in workdirs]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"expected at least one workdir and none twice, found {list(workdirs)}")
    groups = group_runs([read_run(path) for path in paths])
    base = _baseline(groups, baseline)
    metrics = _metric_names(groups, split)
    rows = _metric_rows(groups, metrics, split)
    differences = _paired_rows(groups, base, metrics, split)
    caption = f"Accuracy on the {split} split, %; mean ± sd over n seeds."
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    parts = [caption, markdown_table(["method", "n", *metrics], rows)]
    if differences:
        parts += [PAIRED_NOTE, markdown_table(["difference", "n", *metrics], differences)]
    fields = [[n, *(show(g.fields[n]) for g in groups)] for n in groups[0].fields]
    if fields:
        parts += ["What differs:", markdown_table(["field", *(g.label for g in groups)], fields)]
    write_text(out / "compare.md", "\n\n".join(parts) + "\n")
    header = ["method", "$n$", *(rf"\texttt{{{latex_escape(m)}}}" for m in metrics)]
    write_text(out / "compare.tex", latex_table(header, rows, caption=caption))
    text = render(
        "compare.html",
        title=f"{sum(len(g.runs) for g in groups)} runs, {len(groups)} configurations",
        split=split,
        colours=plots.colours([group.label for group in groups]),
        definitions={name: metric_table.of(name).definition for name in metrics},
        rows=rows,
        differences=differences,
        baseline=base.label,
        paired_note=PAIRED_NOTE,
        sequences=_sequences(groups, split),
        intervals=_intervals(groups, base, metrics, split),
        learning=_learning(groups),
        has_charts=any(run.steps for group in groups for run in group.runs),
        fields=fields,
        runs=[_run_row(run, group, split) for group in groups for run in group.runs],
    )
    path = out / "compare.html"
    write_text(path, text)
    return path


def _baseline(groups: Sequence[Group], name: str | None) -> Group:
    def called(wanted: str) -> list[Group]:
        return [g for g in groups if wanted in (g.label, g.runs[0].results.method)]

    if name is not None and not called(name):
        raise ValueError(f"no group is called {name!r}; there are {[g.label for g in groups]}")
    return (called(name or "grpo") or list(groups))[0]


def _metric_names(groups: Sequence[Group], split: str) -> list[str]:
    found = (name for g in groups for run in g.complete for name in run.results.metrics(split))
    names = metric_table.ordered(found)
    return [name for name in names if any(len(g.values(name, split)) for g in groups)]


def _metric_rows(groups: Sequence[Group], metrics: Sequence[str], split: str) -> list[list[str]]:
    rows = []
    for g in groups:
        values = [g.values(m, split) for m in metrics]
        n = f"{max(map(len, values), default=0)}"  # seeds: runs of the same are averaged
        n += f" (+{len(g.partial)} partial)" if g.partial else ""
        signs = [metric_table.of(m).signed for m in metrics]
        cells = (spread(v, signed=s) for v, s in zip(values, signs, strict=True))
        rows.append([g.label, n, *cells])
    return rows


def _paired_rows(
    groups: Sequence[Group], base: Group, metrics: Sequence[str], split: str
) -> list[list[str]]:
    rows = []
    for g in groups:
        if g is base:
            continue
        differences = [paired(g, base, m, split) for m in metrics]
        n = max(map(len, differences), default=0)
        label = f"{g.label} − {base.label}"
        rows.append([label, str(n), *(spread(d, signed=True) for d in differences)])
    return rows


def _intervals(
    groups: Sequence[Group], base: Group, metrics: Sequence[str], split: str
) -> list[dict[str, Any]]:
    """Rows of each group and of each difference from the baseline: per metric the value with its
    95 % interval, and whether a difference's leaves 0 out."""
    draws = {
        g.label: draws_over_records(g.complete[0], split, seed) if len(g.complete) == 1 else {}
        for seed, g in enumerate(groups)
    }
    rows = []
    for g in groups:
        values = {m: g.values(m, split) for m in metrics}
        rows.append(_interval_row(g.label, values, draws[g.label], metrics, signed=False))
    for g in groups:
        if g is not base:
            both = draws[g.label].keys() & draws[base.label].keys()
            apart = {m: draws[g.label][m] - draws[base.label][m] for m in both}
            values = {m: paired(g, base, m, split) for m in metrics}
            label = f"{g.label} − {base.label}"
            rows.append(_interval_row(label, values, apart, metrics, signed=True))
    return [row for row in rows if row["cells"]]


def _interval_row(
    label: str,
    values: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    metrics: Sequence[str],
    signed: bool,
) -> dict[str, Any]:
    cells, over = [], ""
    for name in metrics:
        found = over_seeds(values[name])
        if found:
            over = f"{len(values[name])} seeds"
        elif name in draws and len(values[name]):
            found, over = around(float(values[name].mean()), draws[name]), "records"
        if not found:
            cells.append({"text": DASH, "apart": False})
            continue
        sign = {"signed": signed or metric_table.of(name).signed}
        low, mean, high = (percent(v, **sign) for v in (found[0], values[name].mean(), found[1]))
        clear = signed and not found[0] <= 0 <= found[1]
        cells.append({"text": f"{mean} [{low}, {high}]", "apart": clear})
    return {"label": label, "over": over, "cells": cells if over else []}


def _learning(groups: Sequence[Group]) -> list[Chart]:
    """The curves of all groups, one chart a task and metric."""
    colours, drawn = plots.colours([group.label for group in groups]), []
    tasks = dict.fromkeys(task for group in groups for run in group.runs for task in run.tasks)
    for task in tasks:
        for key, metric in metric_table.at(Place.LEARNING).items():
            lines = []
            for group in groups:
                curves = [from_start(run, key, task) for run in group.runs]
                curves = [curve for curve in curves if len(curve[0])]
                many = len(curves) > 1
                for number, curve in enumerate(curves if many else (), start=1):
                    name = f"{group.label}, run {number}"
                    lines.append(Line(name, colours[group.label], curve, faint=True))
                if curves:
                    lines.append(Line(group.label, colours[group.label], mean_curve(curves)))
            if lines:
                title = f"{task}: {metric.heading}"
                drawn.append(Chart(title, "", lines, "step of the task", limits=(0.0, 1.0)))
    return drawn


def _sequences(groups: Sequence[Group], split: str) -> list[dict[str, Any]]:
    """Curves and final accuracies, for each sequence of tasks that was run."""
    found = []
    for tasks in dict.fromkeys(tuple(run.tasks) for group in groups for run in group.runs):
        rows = {
            g.label: [r.matrix(split) for r in g.runs if tuple(r.tasks) == tasks] for g in groups
        }
        finals = {
            g.label: np.array([r.matrix(split)[-1] for r in g.complete if tuple(r.tasks) == tasks])
            for g in groups
        }
        means = {label: [m.mean(axis=1) for m in matrices] for label, matrices in rows.items()}
        panels = [
            panel(
                plots.averages(means, tasks),
                "Mean accuracy over all tasks, %",
                "thin: one run (dotted: partial); thick: mean of a group, band: ± sd",
            ),
            panel(
                plots.final_by_task(finals, tasks),
                "Accuracy after the last task, %",
                "dot: one run; bar: mean of a group",
            ),
        ]
        numbers = [
            [label, *(spread(column) for column in np.reshape(values, (-1, len(tasks))).T)]
            for label, values in finals.items()
        ]
        found.append({"tasks": tasks, "panels": panels, "rows": numbers})
    return found


def _run_row(run: Run, group: Group, split: str) -> dict[str, Any]:
    matrix = run.matrix(split)
    return {
        "run": run,
        "name": "/".join(run.workdir.parts[-2:]),
        "group": group.label,
        "seed": DASH if run.results.seed is None else run.results.seed,
        "mean": percent(float(matrix[run.tasks_done].mean())) if run.tasks else DASH,
    }
