"""`compare_runs(workdirs, out_dir)`: several runs as one HTML page, a Markdown and a LaTeX table.

Runs of one method and one configuration form a group, whatever their seeds. Numbers are mean ± sd
over a group's complete runs; runs that are not complete are listed and marked, never averaged.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdbcl_jax.json_files import flatten
from rdbcl_jax.reporting import page, plots
from rdbcl_jax.reporting.page import DASH, escape, percent
from rdbcl_jax.reporting.report import DEFINITIONS, SIGNED
from rdbcl_jax.reporting.run_files import Run, read_run

NOT_CONFIGURATION = re.compile(r"(^|[._])(seed|workdir|out_dir)$")
PAIRED_NOTE = (
    "Mean ± sd of the differences between runs of the same seed, in points. The standard error of"
    " such a mean is sd / √n: with few seeds, a difference of one sd says little."
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    runs: list[Run]
    fields: dict[str, Any]  # configuration fields in which the compared runs differ

    @property
    def complete(self) -> list[Run]:
        return [run for run in self.runs if run.complete]

    @property
    def partial(self) -> list[Run]:
        return [run for run in self.runs if not run.complete]

    def values(self, metric: str, split: str) -> np.ndarray:
        """The metric of each complete run that has it."""
        return np.array(list(self.by_seed(metric, split).values()), float)

    def by_seed(self, metric: str, split: str) -> dict[Any, float]:
        """Seed → metric, runs that share a seed averaged; a run without a seed counts alone."""
        found: dict[Any, list[float]] = {}
        for run in self.complete:
            value = run.results.metrics(split).get(metric)
            if value is not None:
                seed = run.workdir if run.results.seed is None else run.results.seed
                found.setdefault(seed, []).append(value)
        return {seed: float(np.mean(values)) for seed, values in found.items()}


def compare_runs(
    workdirs: Sequence[str | os.PathLike],
    out_dir: str | os.PathLike,
    *,
    baseline: str | None = None,
    split: str = "test",
) -> Path:
    """Write compare.html, compare.md and compare.tex into `out_dir`; returns the page's path.

    Args:
        workdirs: of the runs; unfinished ones are welcome and marked.
        baseline: label or method of the group to subtract in paired differences; by default the
            GRPO group, else the first one.
        split: whose numbers to compare.

    Raises:
        ValueError: no workdir, one that is named twice, or a baseline that no group is called.
    """
    paths = [Path(workdir).resolve() for workdir in workdirs]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"expected at least one workdir and none twice, found {list(workdirs)}")
    groups = group_runs([read_run(path) for path in paths])
    base = _baseline(groups, baseline)
    metrics = _metric_names(groups, split)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(to_markdown(groups, base, metrics, split), encoding="utf-8")
    (out / "compare.tex").write_text(to_latex(groups, metrics, split), encoding="utf-8")
    path = out / "compare.html"
    path.write_text(to_html(groups, base, metrics, split), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------ groups


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group by method and configuration; a label names only what sets a method's groups apart."""
    configs = [flatten(run.results.config) | {"tasks": run.tasks} for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    names = [name for name in names if not NOT_CONFIGURATION.search(name) and name != "method"]
    differing = [name for name in names if len({_key(c.get(name)) for c in configs}) > 1]
    found: dict[tuple, tuple[list[Run], dict[str, Any]]] = {}
    for run, config in zip(runs, configs, strict=True):
        fields = {name: config.get(name) for name in differing}
        key = (_method(run), *map(_key, fields.values()))
        found.setdefault(key, ([], fields))[0].append(run)
    return [
        Group(_label(key, fields, found), members, fields)
        for key, (members, fields) in found.items()
    ]


def _method(run: Run) -> str:
    return run.results.method or "run"


def _label(key: tuple, fields: dict[str, Any], found: Iterable[tuple]) -> str:
    siblings = [other for other in found if other[0] == key[0]]
    own = [
        name for i, name in enumerate(fields) if len({sibling[i + 1] for sibling in siblings}) > 1
    ]
    last = [name.rsplit(".", 1)[-1] for name in own]
    short = [b if last.count(b) == 1 else name for name, b in zip(own, last, strict=True)]
    parts = [f"{s}={_show(fields[name])}" for s, name in zip(short, own, strict=True)]
    return page.method_name(key[0]) + (f" ({', '.join(parts)})" if parts else "")


def _key(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 are the same setting
    return json.dumps(value, sort_keys=True)


def _show(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, list):
        return " > ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _baseline(groups: Sequence[Group], name: str | None) -> Group:
    def called(wanted: str) -> list[Group]:
        return [g for g in groups if wanted in (g.label, _method(g.runs[0]))]

    if name is not None and not called(name):
        raise ValueError(f"no group is called {name!r}; there are {[g.label for g in groups]}")
    return (called(name or "grpo") or list(groups))[0]


def _metric_names(groups: Sequence[Group], split: str) -> list[str]:
    names = dict.fromkeys(DEFINITIONS)
    for group in groups:
        for run in group.complete:
            names |= dict.fromkeys(run.results.metrics(split))
    return [name for name in names if any(len(g.values(name, split)) for g in groups)]


# ------------------------------------------------------------------------------ numbers


def spread(values: np.ndarray, *, signed: bool = False) -> str:
    """Mean ± sd (n − 1) in percent; the mean alone for one value."""
    values = np.asarray(values, float)
    if not len(values):
        return DASH
    mean = percent(float(values.mean()), signed=signed)
    return f"{mean} ± {percent(float(values.std(ddof=1)))}" if len(values) > 1 else mean


def paired(group: Group, base: Group, metric: str, split: str) -> np.ndarray:
    """Differences group − base over the seeds that both have."""
    ours, theirs = group.by_seed(metric, split), base.by_seed(metric, split)
    return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs], float)


def _metric_rows(groups: Sequence[Group], metrics: Sequence[str], split: str) -> list[list[str]]:
    rows = []
    for g in groups:
        n = f"{len(g.complete)}" + (f" (+{len(g.partial)} partial)" if g.partial else "")
        cells = (spread(g.values(m, split), signed=m in SIGNED) for m in metrics)
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


# ------------------------------------------------------------------------------ Markdown, LaTeX


def to_markdown(groups: Sequence[Group], base: Group, metrics: Sequence[str], split: str) -> str:
    """The two tables as Markdown."""
    parts = [f"Accuracy on the {split} split, %; mean ± sd over n seeds."]
    parts.append(markdown_table(["method", "n", *metrics], _metric_rows(groups, metrics, split)))
    differences = _paired_rows(groups, base, metrics, split)
    if differences:
        parts += [PAIRED_NOTE, markdown_table(["difference", "n", *metrics], differences)]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is a name and whose others are numbers."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([line(header), rule, *map(line, rows)])


def to_latex(groups: Sequence[Group], metrics: Sequence[str], split: str) -> str:
    """The table of metrics with booktabs rules."""
    header = ["method", "$n$", *(rf"\texttt{{{latex_escape(m)}}}" for m in metrics)]
    rows = [[latex_escape(cell) for cell in row] for row in _metric_rows(groups, metrics, split)]
    lines = [
        f"% Accuracy on the {split} split, %; mean ± sd over n seeds.",
        r"% Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "β": r"$\beta$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(c, c) for c in text)


# ------------------------------------------------------------------------------ the page


def to_html(groups: Sequence[Group], base: Group, metrics: Sequence[str], split: str) -> str:
    """The whole page."""
    runs = [run for group in groups for run in group.runs]
    title = f"{len(runs)} runs, {len(groups)} configurations"
    body = "\n".join(
        (
            f'<h1>{title}</h1>\n<p class="meta">{escape(split)} split</p>{_legend(groups)}',
            _metrics_section(groups, metrics, split),
            _paired_section(groups, base, metrics, split),
            *_picture_sections(groups, split),
            _fields_section(groups),
            _runs_section(groups, split),
        )
    )
    return page.page(title, body)


def _legend(groups: Sequence[Group]) -> str:
    return page.legend(plots.colours([group.label for group in groups]).items())


def _cells(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]


def _metrics_section(groups: Sequence[Group], metrics: Sequence[str], split: str) -> str:
    meanings = ([f"<code>{escape(m)}</code>", escape(DEFINITIONS.get(m, ""))] for m in metrics)
    return page.section(
        "Metrics",
        _numbers_table("method", metrics, _metric_rows(groups, metrics, split)),
        page.details("What the metrics mean", page.table((), meanings)),
        intro="Percent; mean ± standard deviation over the n complete runs of each group.",
    )


def _numbers_table(corner: str, metrics: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A row per group, or a column where they are few: ten metrics are wider than most screens."""
    lines = [[corner, "n", *map(_named, metrics)], *_cells(rows)]
    if len(rows) > 4:
        return page.table(lines[0], lines[1:], kind="lined numbers")
    lines[0][0] = ""
    columns = [list(column) for column in zip(*lines, strict=True)]
    return page.table(columns[0], columns[1:], kind="lined numbers narrow")


def _named(metric: str) -> str:
    title = escape(DEFINITIONS.get(metric, ""))
    return f'<span title="{title}">{escape(metric).replace("_", "_<wbr>")}</span>'


def _paired_section(
    groups: Sequence[Group], base: Group, metrics: Sequence[str], split: str
) -> str:
    rows = _paired_rows(groups, base, metrics, split)
    return page.section(
        f"Paired differences from {base.label}",
        _numbers_table("difference", metrics, rows) if rows else "",
        intro=PAIRED_NOTE,
    )


def _picture_sections(groups: Sequence[Group], split: str) -> Iterable[str]:
    """Curves and final accuracies, for each sequence of tasks that was run."""
    sequences = dict.fromkeys(tuple(run.tasks) for group in groups for run in group.runs)
    for tasks in sequences:
        rows = {
            g.label: [r.matrix(split) for r in g.runs if tuple(r.tasks) == tasks] for g in groups
        }
        finals = {
            g.label: np.array([r.matrix(split)[-1] for r in g.complete if tuple(r.tasks) == tasks])
            for g in groups
        }
        means = {label: [m.mean(axis=1) for m in matrices] for label, matrices in rows.items()}
        several = " on " + " → ".join(tasks) if len(sequences) > 1 else ""
        yield page.section(
            f"Accuracy{several}",
            _legend(groups),
            page.grid(
                (
                    page.figure(
                        plots.averages(means, tasks),
                        "Mean accuracy over all tasks, %",
                        "thin: one run (dotted: partial); thick: mean of a group, band: ± sd",
                    ),
                    page.figure(
                        plots.final_by_task(finals, tasks),
                        "Accuracy after the last task, %",
                        "dot: one run; bar: mean of a group",
                    ),
                ),
                wide=True,
            ),
            page.details("Numbers", _final_table(finals, tasks)),
        )


def _final_table(finals: dict[str, np.ndarray], tasks: Sequence[str]) -> str:
    rows = [
        [label, *(spread(column) for column in np.reshape(values, (-1, len(tasks))).T)]
        for label, values in finals.items()
    ]
    return page.table(["method", *map(escape, tasks)], _cells(rows), kind="lined numbers")


def _fields_section(groups: Sequence[Group]) -> str:
    names = list(groups[0].fields)
    rows = [
        [f"<code>{escape(n)}</code>", *(escape(_show(g.fields[n])) for g in groups)] for n in names
    ]
    header = ["field", *(escape(group.label) for group in groups)]
    return page.section(
        "What differs",
        page.table(header, rows, kind="lined") if rows else "",
        intro="Configuration fields that are not the same in all runs (seeds aside).",
    )


def _runs_section(groups: Sequence[Group], split: str) -> str:
    rows = [_run_row(run, group, split) for group in groups for run in group.runs]
    header = ["run", "group", "seed", "state", "mean accuracy at its last row, %"]
    return page.section("Runs", page.table(header, rows, kind="lined"))


def _run_row(run: Run, group: Group, split: str) -> list[str]:
    done, total = run.tasks_done, len(run.tasks)
    partial = f'<span class="status running">partial: {done} of {total} tasks</span>'
    return [
        escape("/".join(run.workdir.parts[-2:])),
        escape(group.label),
        escape(DASH if run.results.seed is None else run.results.seed),
        "complete" if run.complete else partial,
        percent(float(run.matrix(split)[done].mean())) if total else DASH,
    ]
