"""`write_report(workdir)`: one run as one self-contained HTML page, finished or not."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rdbcl_jax.json_files import plain, write_text
from rdbcl_jax.reporting import examples, metric_table, plots
from rdbcl_jax.reporting.charts import Chart, Line, from_start, over_tasks
from rdbcl_jax.reporting.heat_map import HeatMap, heat_map
from rdbcl_jax.reporting.metric_table import STEP, Place
from rdbcl_jax.reporting.numbers import duration, percent
from rdbcl_jax.reporting.page import Panel, method_name, panel, render
from rdbcl_jax.reporting.run_files import Run, read_run
from rdbcl_jax.results import RunResults, SplitResults

SAMPLED = {"rp": STEP["rp/mean"].label, "kl_coef": STEP["kl_coef/mean"].label}  # of each sample


def write_report(workdir: str | os.PathLike) -> Path:
    """Writes `report.html` into a workdir from the files there; returns its path."""
    run = read_run(workdir)
    method, split = method_name(run.results.method), main_split(run)
    text = render(
        "report.html",
        title=f"{method} report",
        has_charts=bool(run.steps),
        method=method,
        run=run,
        split=split,
        facts=_facts(run),
        written=time.time(),
        logged=_last_logged(run),
        task_colours=plots.colours(run.tasks),
        tiles=_tiles(run, split),
        accuracy=_accuracy(run, split) if run.tasks else None,
        metrics=_metrics(run, split),
        learning=_learning(run),
        portability=_portability(run),
        health=_health(run),
        examples=_examples(run),
        config=_config(run.results),
        environment=_environment(run.results),
        timing=_timing(run.results),
    )
    path = Path(workdir) / "report.html"
    write_text(path, text)
    return path


def _examples(run: Run) -> examples.Examples | None:
    try:
        return examples.choose(run.tasks, run.examples)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = run.workdir / "examples.json"
        raise ValueError(f"{path} is damaged, it holds other examples: {error}") from None


# ------------------------------------------------------------------------------ headline


def main_split(run: Run) -> str:
    """The split that the headline shows: test where there is one."""
    splits = list(run.results.splits)
    return "test" if "test" in splits or not splits else splits[0]


def _facts(run: Run) -> list[str]:
    results = run.results
    facts = [f"seed {results.seed}"] if results.seed is not None else []
    facts += [results.device] if results.device else []
    facts += [f"{len(run.steps)} steps logged"] if run.steps else []
    return facts + ([duration(total)] if (total := _total_seconds(results)) else [])


def _last_logged(run: Run) -> float:
    """When the last step was logged, in seconds since the epoch; 0: none was."""
    path = run.workdir / "metrics.jsonl"
    return path.stat().st_mtime if run.steps else 0.0


def _tiles(run: Run, split: str) -> list[dict[str, Any]]:
    first = run.matrix(split)[0]  # of no task, before the first evaluation
    metrics, base = run.results.metrics(split), first.mean() if len(first) else math.nan
    last, count = metrics.get("last"), len(run.held_out)
    others = f"{count} task{'s' if count > 1 else ''} not learned"
    notes = {  # of this run; the others' are of the metric
        "last": (f"base model {percent(base)}", None if last is None else last - base),
        "held_out_last": (others, metrics.get("held_out_change")),
    }
    tiles = []
    for name, metric in metric_table.at(Place.TILE).items():
        if name == "held_out_last" and not run.held_out:
            continue
        note, change = notes.get(name, (metric.note, None))
        tiles.append(
            {
                "label": metric.heading[0].upper() + metric.heading[1:],
                "value": percent(metrics.get(name), signed=metric.signed),
                "note": note,
                "change": change if change is not None and math.isfinite(change) else None,
            }
        )
    return tiles


# ------------------------------------------------------------------------------ accuracy


def _accuracy(run: Run, split: str) -> dict[str, Any]:
    matrix = run.matrix(split)
    panels = [
        panel(
            plots.retention(matrix, run.tasks),
            "Along the sequence, %",
            "dotted: not trained on yet; large dot: just trained",
        ),
        panel(
            plots.before_and_after(matrix, run.tasks),
            "Gained and kept, %",
            "ring: base model; pale dot: just trained; large dot: last row",
        ),
    ]
    if run.held_out:
        panels.append(_held_out(run))
    others = [name for name in run.results.splits if name != split]
    return {
        "maps": _maps(run, split),
        "panels": panels,
        "held_out_colours": plots.colours(run.held_out),
        "other_splits": {name: _maps(run, name) for name in others},
    }


def _held_out(run: Run) -> Panel:
    """Tasks that are not learned, along the run."""
    points = run.measured()
    steps = np.array(sorted(points))
    accuracies = np.array([points[s][len(run.tasks) :] for s in steps])
    drawing = plots.held_out(steps, accuracies.reshape(-1, len(run.held_out)), run.held_out)
    return panel(drawing, "Not learned, %", "validation split; colours below")


def _maps(run: Run, split: str) -> list[HeatMap]:
    """Accuracy and parse rate."""
    found = run.results.splits.get(split, SplitResults())
    words = "framed: just trained" + ("; slanted: not learned" if run.held_out else "")
    named = zip(found.count, (*run.tasks, *run.held_out), strict=False)
    right = [0 if task in run.results.measures else count for count, task in named]
    kinds = [("accuracy", "Accuracy, %", words, "accuracy")]
    if found.parse_rate:
        note = "losing the format is not losing the knowledge"
        kinds.append(("parse_rate", "Parse rate, %", note, "parse"))
    return [
        heat_map(
            run.matrix(split, what, held_out=True),
            run.tasks,
            run.held_out,
            counts=right if what == "accuracy" else found.count,
            title=title,
            note=note,
            hue=hue,
        )
        for what, title, note, hue in kinds
    ]


def _metrics(run: Run, split: str) -> dict[str, Any] | None:
    values = {name: run.results.metrics(name) for name in run.results.splits}
    values = {split: values.pop(split, {}), **values}
    names = metric_table.ordered(name for found in values.values() for name in found)
    if not names:
        return None
    rows = []
    for name in names:
        metric = metric_table.of(name)
        cells = (percent(found.get(name), signed=metric.signed) for found in values.values())
        rows.append([name, *cells, metric.definition])
    return {"header": ["metric", *(f"{s}, %" for s in values), "definition"], "rows": rows}


# ------------------------------------------------------------------------------ curves


def _task_start(run: Run, task: str) -> int:
    return next((row["step"] for row in run.steps if row.get("task") == task), 0)


def _learning(run: Run) -> dict[str, Any] | None:
    shown = metric_table.at(Place.LEARNING)
    tasks = [task for task in run.tasks if len(run.series("reward", task)[0])]
    if not tasks:
        return None
    colours = dict(zip(shown, plots.PALETTE, strict=False))
    drawn, points = [], False
    for k, task in enumerate(tasks, start=1):
        lines = [
            Line(metric.label, colours[key], from_start(run, key, task))
            for key, metric in shown.items()
        ]
        measured = from_start(run, f"eval/{task}/accuracy", task)
        points |= bool(len(measured[0]))
        lines.append(Line("validation accuracy", plots.INK, measured, points=True))
        drawn.append(Chart(f"{k} {task}", "", lines, "step of the task", limits=(0.0, 1.0)))
    titles = {metric.heading: colours[key] for key, metric in shown.items()}
    return {"colours": titles, "points": points, "charts": drawn}


def _portability(run: Run) -> dict[str, Any] | None:
    samples = run.samples
    if samples is None:
        return None
    present = {name: label for name, label in SAMPLED.items() if name in samples.column_names}
    data = {label: _floats(samples[name]) for name, label in present.items()}
    data = {label: values for label, values in data.items() if np.isfinite(values).any()}
    if not data:
        return None
    limits = {label: plots.pooled_limits(values) for label, values in data.items()}
    of_task = np.array(samples["task"].to_pylist())
    steps = samples["step"].to_numpy()
    panels = []
    for k, task in enumerate(run.tasks):
        rows = of_task == task
        if rows.any():
            local = {label: values[rows] for label, values in data.items()}
            drawing = plots.portability(steps[rows] - _task_start(run, task), local, limits)
            panels.append(panel(drawing, f"{k + 1} {task}"))
    colours = {"share of the step's samples": plots.ACCENT, "mean": plots.SECOND}
    return {"has_rp": SAMPLED["rp"] in data, "colours": colours, "panels": panels}


def _floats(column: Any) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in column.to_pylist()], float)


def _health(run: Run) -> dict[str, list[Chart]]:
    shown = metric_table.at(Place.HEALTH)
    others = [key for key in run.keys if key not in shown and not key.startswith("eval/")]
    return {
        "charts": [
            _timeline(run, key, metric.heading, metric.caption)
            for key, metric in shown.items()
            if key in run.keys
        ],
        "others": [_timeline(run, key, key) for key in others],
    }


def _timeline(run: Run, key: str, title: str, note: str = "") -> Chart:
    metric, colours = metric_table.of(key), plots.colours(run.tasks)
    curves = {task: run.series(key, task) for task in run.tasks}
    values = np.concatenate([y[np.isfinite(y)] for _, y in curves.values()])
    top = 1.5 * float(np.quantile(values, 0.95)) if metric.cut_peaks and len(values) else None
    return over_tasks(curves, colours, title, note, log=metric.log_scale, top=top)


# ------------------------------------------------------------------------------ setup


def _config(results: RunResults) -> str:
    config = plain(results.config)
    return json.dumps(config, indent=2, ensure_ascii=False) if config else ""


def _environment(results: RunResults) -> Mapping[str, str]:
    return {**({"device": results.device} if results.device else {}), **results.versions}


def _total_seconds(results: RunResults) -> float:
    return results.timing.get("total", sum(results.timing.values()))


def _timing(results: RunResults) -> list[tuple[str, float, float | None]]:
    """(phase, seconds, share of the total), the longest first; the total has no share."""
    total = _total_seconds(results)
    if not total:
        return []
    phases = sorted(results.timing.items(), key=lambda item: -item[1])
    rows = [(name, s, min(s / total, 1.0)) for name, s in phases if name != "total"]
    return [*rows, ("total", total, None)]
