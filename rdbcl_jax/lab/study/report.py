"""A study's report: study.json holds every number, study.md the tables, PNG files the pictures.

Numbers are computed once, from the runs' workdirs; tables and pictures are made from them.
Test accuracies are read for the chosen points and the declared curves alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdbcl_jax.lab.study import plots, tradeoff
from rdbcl_jax.lab.study.results import (
    CellResults,
    CurvePoint,
    Difference,
    Gate,
    StudyResults,
    TuningResults,
    write_study,
)
from rdbcl_jax.lab.study.selection import Choice, paired_bootstrap
from rdbcl_jax.lab.study.surface import WITHIN, Surface, surfaces
from rdbcl_jax.reporting import metric_table
from rdbcl_jax.reporting.metric_table import STUDY, STUDY_COLUMNS
from rdbcl_jax.reporting.numbers import DASH, percent, significant, spread
from rdbcl_jax.reporting.plots import thin
from rdbcl_jax.reporting.run_files import Run, read_run
from rdbcl_jax.reporting.text_tables import Markdown, markdown_escape, markdown_table
from rdbcl_jax.results import SplitResults


@dataclasses.dataclass(frozen=True)
class Cell:
    """An arm at one point in one setting, over the report seeds.

    Attributes:
      point: its overrides' name; empty where there are none.
      runs: seed → workdir of a finished run.
      failed: seed → error.
      lacking: seed → why there was nothing to learn from.
    """

    setting: str
    arm: str
    point: str
    runs: Mapping[int, Path]
    failed: Mapping[int, str]
    lacking: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Validation scores of a grid's points, one per tuning seed; NaN: failed or not there."""

    setting: str
    arm: str
    points: Sequence[str]
    scores: Sequence[Sequence[float]]
    choice: Choice | None


@dataclasses.dataclass(frozen=True)
class Record:
    """What a study has run, as far as it has come."""

    name: str
    metric: str
    baseline: str
    tuning_seeds: Sequence[int]
    report_seeds: Sequence[int]
    arms: Sequence[Cell]
    curves: Sequence[tuple[str, float, Cell]]  # name, x
    tuning: Sequence[Tuning]
    failed: Mapping[str, str]  # run or base → error
    gates: Sequence[Gate] = ()
    stopped: str = ""  # why the study ended before its end
    lacking: Mapping[str, str] = dataclasses.field(default_factory=dict)  # run → why


def write_study_report(record: Record, out: Path) -> StudyResults:
    """Writes study.json, study.md and the pictures; returns the content of study.json."""
    numbers = summarise(record).as_written()
    write_study(out, numbers)
    pictures = plots.draw(numbers)
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=160, facecolor="white")
    (out / "study.md").write_text(to_markdown(numbers, list(pictures)), encoding="utf-8")
    return numbers


# ------------------------------------------------------------------------------ numbers


def summarise(record: Record) -> StudyResults:
    """All numbers of a study; per-seed values in the order of `seeds`."""
    alone = [CellResults(**_cell(cell)) for cell in record.arms]
    arms = []
    for cell in alone:
        base = _find(alone, cell.setting, record.baseline)
        gap = None if cell is base else difference(cell, base, record.metric)
        arms.append(dataclasses.replace(cell, difference=gap))
    return StudyResults(
        name=record.name,
        metric=record.metric,
        baseline=record.baseline,
        tuning_seeds=record.tuning_seeds,
        report_seeds=record.report_seeds,
        settings=list(dict.fromkeys(cell.setting for cell in record.arms)),
        arms=arms,
        curves=[CurvePoint(curve=name, x=x, **_cell(cell)) for name, x, cell in record.curves],
        tuning=[_tuning(tuning) for tuning in record.tuning],
        failed=record.failed,
        gates=record.gates,
        stopped=record.stopped,
        lacking=record.lacking,
    )


def _cell(cell: Cell) -> dict[str, Any]:
    """The fields of a `CellResults`."""
    runs = {seed: read_run(path) for seed, path in cell.runs.items()}
    tests = [run.results.splits["test"] for run in runs.values()]
    return {
        "setting": cell.setting,
        "arm": cell.arm,
        "point": cell.point,
        "seeds": list(runs),
        "failed": {str(seed): error for seed, error in cell.failed.items()},
        "lacking": {str(seed): reason for seed, reason in cell.lacking.items()},
        "tasks": next((run.tasks for run in runs.values()), []),
        "metrics": {name: [t.metrics.get(name) for t in tests] for name in _names(tests)},
        "accuracy": [t.accuracy for t in tests],
        "strength": _columns(strength(run) for run in runs.values()),
        "cost": _columns(cost(run) for run in runs.values()),
        "learning": _learning(list(runs.values())),
        "progress": _progress(list(runs.values())),
        "tradeoff": tradeoff.summary(list(runs.values()), [sampled(r) for r in runs.values()]),
    }


def _names(tests: Sequence[SplitResults]) -> list[str]:
    return list(dict.fromkeys(name for test in tests for name in test.metrics))


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list]:
    rows = list(rows)
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def strength(run: Run) -> dict[str, float]:
    """How strong the KL term was, means over all steps: `kl_coef` (the realised β), `kl_loss`
    (kl_coef · kl as it enters the loss) and `kl`, nats per token. NaN where it was not
    logged: without a KL term kl_loss is 0, and the others are not there."""

    def mean(key: str) -> float:
        values = run.series(key)[1]
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else math.nan

    return {"kl_coef": mean("kl_coef/mean"), "kl_loss": mean("kl_loss"), "kl": mean("kl")}


def cost(run: Run) -> dict[str, float]:
    """Sampled responses; tokens of the prompts and responses that were learned from; and seconds of
    learning (the sum of step times: evaluation, checkpoints and the report are not in it,
    compilation is). All are 0 where nothing was learned."""
    tokens, seconds = run.series("num_tokens")[1], run.series("step_time")[1]
    return {
        "sampled": float(sampled(run).sum()),
        "tokens": float(tokens[-1]) if len(tokens) else 0.0,
        "seconds": float(np.nansum(seconds)),
    }


def sampled(run: Run) -> np.ndarray:
    """Responses that the policy sampled in each step, those that a method drew and left out with
    them; 0 where all were demonstrations.

    Surveys, MSSR's pre-task statistics and LwF's responses of the previous policy are not counted.
    """
    return np.array([row.get("sampled", np.nan) for row in run.steps], float)


def _learning(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Accuracy of the sampled responses and entropy of the policy (where it was logged) by step,
    means over seeds, and what each step had cost; empty where no responses were sampled."""
    runs = [run for run in runs if sampled(run).any() and len(run.series("accuracy")[0])]
    if not runs:
        return {}
    length = min(len(run.steps) for run in runs)
    logged = [k for k in ("accuracy", "entropy") if all(len(r.series(k)[0]) for r in runs)]

    columns = [{**_costs(r), **{name: r.series(name)[1] for name in logged}} for r in runs]
    means = {k: np.mean([column[k][:length] for column in columns], axis=0) for k in columns[0]}
    return {name: thin(x, x)[1].tolist() for name, x in means.items()}


def _costs(run: Run) -> dict[str, np.ndarray]:
    """Steps, sampled responses and tokens by the end of every step."""
    return {
        "step": np.array([row["step"] + 1.0 for row in run.steps]),
        "sampled": np.cumsum(sampled(run)),
        "tokens": run.series("num_tokens")[1],
    }


def _progress(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Accuracy on validation records, mean over the tasks of the sequence and over seeds, wherever
    it was measured: before and after every task, and every `evaluation.every` steps."""
    runs = [run for run in runs if run.steps]
    if not runs:
        return {}
    found = [run.measured() for run in runs]
    done = sorted(set.intersection(*(set(accuracies) for accuracies in found)))
    costs = [
        {name: np.concatenate([[0.0], x])[run.logged(done)] for name, x in _costs(run).items()}
        for run in runs
    ]
    means = {name: np.mean([cost[name] for cost in costs], axis=0) for name in costs[0]}
    learned = slice(len(runs[0].tasks))  # those held out come after them
    accuracy = np.mean([[a[step][learned].mean() for step in done] for a in found], axis=0)
    return {**{name: x.tolist() for name, x in means.items()}, "accuracy": accuracy.tolist()}


def difference(cell: CellResults, base: CellResults, metric: str) -> Difference:
    """Cell − base of a metric, over the seeds that both have."""
    ours = dict(zip(cell.seeds, cell.metrics.get(metric, []), strict=False))
    theirs = dict(zip(base.seeds, base.metrics.get(metric, []), strict=False))
    pairs = {s: (ours[s], theirs.get(s)) for s in ours}
    gaps = {s: a - b for s, (a, b) in pairs.items() if a is not None and b is not None}
    seeds, values = list(gaps), list(gaps.values())
    mean = float(np.mean(values)) if values else math.nan
    return Difference(seeds, values, mean, *paired_bootstrap(values))


def _find(cells: Sequence[CellResults], setting: str, arm: str) -> CellResults:
    return next(c for c in cells if (c.setting, c.arm) == (setting, arm))


def _tuning(tuning: Tuning) -> TuningResults:
    choice = tuning.choice
    return TuningResults(
        setting=tuning.setting,
        arm=tuning.arm,
        points=tuning.points,
        scores=tuning.scores,
        chosen=tuning.points[choice.index] if choice else None,
        edges=choice.edges if choice else (),
    )


# ------------------------------------------------------------------------------ Markdown


def to_markdown(numbers: StudyResults, pictures: Sequence[str] = ()) -> str:
    """study.md, from the content of study.json."""
    parts = [f"# {numbers.name}", _intro(numbers)]
    if numbers.stopped:
        parts.append(f"**Stopped: {markdown_escape(numbers.stopped)}**")
    if numbers.gates:
        parts += ["## Gate", _gates(numbers)]
    if numbers.failed:
        parts += ["## Failed", f"These runs are in no number below.\n\n{_list(numbers.failed)}"]
    if numbers.lacking:
        parts += ["## Nothing to learn from", LACKING_NOTE, _list(numbers.lacking)]
    for setting in numbers.settings:
        cells = [cell for cell in numbers.arms if cell.setting == setting]
        several = f": {setting}" if len(numbers.settings) > 1 else ""
        parts += [
            f"## Results{several}",
            _results(cells, numbers),
            *_tradeoff(cells, several),
            f"### By seed{several}",
            _by_seed(cells, numbers),
            f"### Strength of the KL term and cost{several}",
            STRENGTH_NOTE,
            _strengths(cells),
        ]
    if numbers.tuning:
        parts += ["## Choice on validation", _choices(numbers)]
    if numbers.curves:
        parts += ["## Curves", _curves(numbers)]
    for name, found in surfaces(numbers):
        parts += [f"## Over {name} and settings", _surface(found)]
    parts += [f"![{name}]({name}.png)" for name in pictures]
    return "\n\n".join(parts) + "\n"


LACKING_NOTE = (
    "These runs lacked data, which is their result; they are in no number below. To try one again,"
    " remove its folder in `runs/`."
)
STRENGTH_NOTE = (
    "Means over steps, then mean ± sd over seeds: kl_coef is the realised β, kl_loss = kl_coef · kl"
    " as it enters the loss, and kl itself (both 10⁻³ nats per token); a dash where there is no KL"
    " term. Sampled are responses of the policy, also those drawn and dropped; tokens are those of"
    " prompts and responses learned from; minutes are those of learning, compilation included, on"
    " this machine as it was shared."
)


def _intro(numbers: StudyResults) -> str:
    metric, seeds = metric_table.of(numbers.metric).label, numbers.report_seeds
    text = f"Accuracy on the test split, %; mean ± sd over {len(seeds)} seeds"
    text += f" ({', '.join(map(str, seeds))})."
    if numbers.tuning:
        chosen = ", ".join(map(str, numbers.tuning_seeds))
        text += (
            f" Points of grids were chosen by {metric} on the validation split over other seeds"
            f" ({chosen}); * marks a choice at the edge of its grid."
        )
    return text + (
        f" Differences are those to **{numbers.baseline}**, paired by seed, with a 95 %"
        " percentile bootstrap interval over seeds: it covers about 50, 75, 84 and 92 % of means"
        " for 2, 3, 5 and 10 seeds of normal data, so look at the seeds themselves."
    )


def _list(reasons: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {markdown_escape(why)}" for name, why in reasons.items())


def _gates(numbers: StudyResults) -> str:
    """Every base's verdict, and what it failed by; gate.md of its folder has all checks."""
    rows = []
    for gate in numbers.gates:
        wrong = (
            f"{c['task']} {c['name']} {percent(c['value'])}"
            f" (asked: {percent(c['low'])} … {percent(c['high'])})"
            for c in gate.checks
            if not c["passed"]
        )
        verdict = "passed" if gate.passed else "FAILED"
        rows.append([gate.name, verdict, str(len(gate.checks)), ", ".join(wrong)])
    return markdown_table(["gate", "verdict", "checks", "failed by"], rows)


def _tradeoff(cells: Sequence[CellResults], several: str) -> list[str]:
    if not any(cell.tradeoff for cell in cells):
        return []
    return [f"### New tasks and old ones{several}", tradeoff.NOTE, tradeoff.table(cells)]


def _results(cells: Sequence[CellResults], numbers: StudyResults) -> str:
    metric = numbers.metric
    names = [*STUDY_COLUMNS] if metric in STUDY_COLUMNS else [metric, *STUDY_COLUMNS]
    if all(len(cell.tasks) < 2 for cell in cells):  # the others are Last again, or 0
        names = [name for name in names if name in ("last", metric)]
    title = metric_table.of(metric).label
    labels = (metric_table.of(name).label for name in names)
    header = ["arm", "chosen", "n", *labels, f"{title} − {numbers.baseline} [95 %]"]
    rows = []
    for cell in cells:
        means = _spreads(cell, names)
        n = f"{len(cell.seeds)} {cell.missing}".strip()
        rows.append([cell.arm, _chosen(cell, numbers), n, *means, _interval(cell.difference)])
    return markdown_table(header, rows)


def _chosen(cell: CellResults, numbers: StudyResults) -> str:
    place = (cell.setting, cell.arm)
    edge = any((t.setting, t.arm) == place and t.edges for t in numbers.tuning)
    return Markdown(markdown_escape(short(cell.point)) + ("*" if edge else ""))


def short(point: str) -> str:
    """`kl.beta=0.1` → `beta=0.1`, where that stays clear."""
    parts = [part.rpartition("=") for part in point.split(",") if part]
    last = [field.rsplit(".", 1)[-1] for field, _, _ in parts]
    names = [b if last.count(b) == 1 else f for b, (f, _, _) in zip(last, parts, strict=True)]
    return ", ".join(
        f"{name}={value}" if name else value
        for name, (_, _, value) in zip(names, parts, strict=True)
    )


def _interval(found: Difference | None) -> str:
    if not found or found.mean is None:
        return DASH
    ends = (
        f" [{_signed(found.low)}, {_signed(found.high)}]"
        if found.low is not None and found.high is not None
        else ""
    )
    return f"{_signed(found.mean)}{ends}"


def _signed(value: float) -> str:
    return percent(value, signed=True)


def _spread(values: Sequence[float | None], *, signed: bool = False) -> str:
    return spread(np.array([v for v in values if v is not None]), signed=signed)


def _spreads(cell: CellResults, names: Sequence[str]) -> list[str]:
    signed = {name: metric_table.of(name).signed for name in names}
    return [_spread(cell.metrics.get(name, []), signed=signed[name]) for name in names]


def _by_seed(cells: Sequence[CellResults], numbers: StudyResults) -> str:
    """The metric of every seed, and its difference to the baseline's."""
    rows = []
    for cell in cells:
        found = dict(zip(cell.seeds, cell.metrics.get(numbers.metric, []), strict=False))
        gap = cell.difference
        gaps = dict(zip(gap.seeds, gap.values, strict=True)) if gap else {}
        rows.append([cell.arm, *(_seed(s, found, gaps, cell) for s in numbers.report_seeds)])
    return markdown_table(["arm", *(f"seed {s}" for s in numbers.report_seeds)], rows)


def _seed(seed: int, values: Mapping, gaps: Mapping, cell: CellResults) -> str:
    if str(seed) in cell.failed:
        return "failed"
    if str(seed) in cell.lacking:
        return "no data"
    text = percent(values.get(seed))
    return f"{text} ({_signed(gaps[seed])})" if seed in gaps else text


def _strengths(cells: Sequence[CellResults]) -> str:
    strengths, costs = ("kl_coef", "kl_loss", "kl"), ("sampled", "tokens", "seconds")
    rows = [
        [
            cell.arm,
            *(_strength(cell, name) for name in strengths),
            *(_cost(cell, name) for name in costs),
        ]
        for cell in cells
    ]
    return markdown_table(["arm", *(STUDY[name].label for name in (*strengths, *costs))], rows)


def _strength(cell: CellResults, name: str) -> str:
    found = _scaled(cell.strength, name)
    if not len(found):
        return DASH
    sd = f" ± {significant(found.std(ddof=1), 2)}" if len(found) > 1 else ""
    return significant(found.mean(), 3) + sd


def _cost(cell: CellResults, name: str) -> str:
    found = _scaled(cell.cost, name)
    return f"{found.mean():,.{0 if found.mean() >= 100 else 1}f}" if len(found) else DASH


def _scaled(values: Mapping[str, Sequence[float | None]], name: str) -> np.ndarray:
    found = np.array([v for v in values.get(name, ()) if v is not None], float)
    return STUDY[name].scale * found


def _choices(numbers: StudyResults) -> str:
    """Every point of every grid, the chosen ones in bold."""
    rows = []
    for tuning in numbers.tuning:
        for point, scores in zip(tuning.points, tuning.scores, strict=True):
            whole = all(score is not None for score in scores)
            mean = (
                _spread(scores) if whole else f"out: {scores.count(None)} of {len(scores)} missing"
            )
            edges, cells = "", [short(point), mean]
            if point == tuning.chosen:
                cells = [Markdown(f"**{markdown_escape(cell)}**") for cell in cells]
                edges = f"edge of {', '.join(tuning.edges)}" if tuning.edges else ""
            rows.append([tuning.arm, tuning.setting, *cells, edges])
    return markdown_table(["arm", "setting", "point", f"{numbers.metric} (validation)", ""], rows)


def _surface(found: Surface) -> str:
    """Of each arm its best point, how many are nearly as good, and the greatest gains on others."""
    arms = list(found.means)
    gains = (f"largest gain on {arm}" for arm in arms)
    header = ["arm", "best", f"share of its points at most {100 * WITHIN:g} below", *gains]
    rows = [
        [
            arm,
            percent(found.best(arm)),
            f"{found.forgiving(arm):.0%}",
            *(DASH if other == arm else _gain(found, arm, other) for other in arms),
        ]
        for arm in arms
    ]
    note = (
        "Means over seeds. A gain is over the other arm's best in the same setting: what an arm's "
        "best point brings where the other's is tuned as well. An arm's best is chosen among the "
        "points that are shown, by the numbers that are shown: it flatters."
    )
    return f"{note}\n\n{markdown_table(header, rows)}"


def _gain(found: Surface, arm: str, other: str) -> str:
    """The largest difference of bests within one setting, and where."""
    gaps = found.bests(arm) - found.bests(other)
    if not np.isfinite(gaps).any():
        return DASH  # no setting has a finished run of both
    where = int(np.nanargmax(gaps))
    return f"{_signed(gaps[where])} ({found.settings[where]})"


def _curves(numbers: StudyResults) -> str:
    labels = (metric_table.of(name).label for name in STUDY_COLUMNS)
    header = ["curve", "setting", "arm", "x", "point", "n", *labels, STUDY["kl_coef"].label]
    rows = [
        [
            cell.curve,
            cell.setting,
            cell.arm,
            f"{cell.x:g}",
            short(cell.point),
            str(len(cell.seeds)),
            *_spreads(cell, STUDY_COLUMNS),
            _strength(cell, "kl_coef"),
        ]
        for cell in numbers.curves
    ]
    return markdown_table(header, rows)
