"""What a study has found, as far as it has come: what its report is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rdbcl_jax.json_files import read_json
from rdbcl_jax.lab.study.declare import point_name
from rdbcl_jax.lab.study.plan import Plan, at_chosen, run_name
from rdbcl_jax.lab.study.report import Cell, Record, Tuning
from rdbcl_jax.lab.study.results import Gate
from rdbcl_jax.lab.study.standing import Standing


def find(standing: Standing, name: str) -> Record:
    """Every arm and every point of a curve, with the workdirs of its finished runs."""
    study, plan = standing.study, standing.plan()
    places = [(setting, arm) for setting in study.settings for arm in study.arms]
    tuned = [place for place in places if len(study.arms[place[1]].grid) > 1]
    return Record(
        name=name,
        metric=study.metric,
        baseline=study.baseline,
        tuning_seeds=study.tuning_seeds,
        report_seeds=study.report_seeds,
        arms=[_cell(standing, plan, *place, {}) for place in places],
        curves=[
            (curve.name, x, _cell(standing, plan, setting, curve.arm, point))
            for curve in study.curves
            for setting in study.settings
            for x, point in curve.points.items()
        ],
        tuning=[_tuning(standing, plan, *place) for place in tuned],
        failed=standing.errors,
        lacking=standing.lacking,
        gates=_gates(standing),
        stopped=standing.stopped,
    )


def _gates(standing: Standing) -> list[Gate]:
    """All that were ever asked for in this workdir."""
    files = sorted(standing.workdir.glob("gates/*/gate.json"))
    found = {str(f.parent.relative_to(standing.workdir)): read_json(f, {}) for f in files}
    return [Gate(name, gate["passed"], gate["models"]["base"]) for name, gate in found.items()]


def _cell(standing: Standing, plan: Plan, setting: str, arm: str, point: Mapping[str, Any]) -> Cell:
    study = standing.study
    full = at_chosen(study.arms[arm], point, plan.points.get((setting, arm)))
    names = {
        seed: run_name(setting, arm, full, seed) for seed in study.report_seeds if full is not None
    }
    over = {seed: name for seed, name in names.items() if math.isfinite(_score(standing, name))}
    return Cell(
        setting=setting,
        arm=arm,
        point="not chosen" if full is None else point_name(full),
        runs={seed: standing.runs / name for seed, name in over.items()},
        failed={s: standing.errors[n] for s, n in names.items() if n in standing.errors},
        lacking={s: standing.lacking[n] for s, n in names.items() if n in standing.lacking},
    )


def _tuning(standing: Standing, plan: Plan, setting: str, arm: str) -> Tuning:
    points, seeds = standing.study.arms[arm].grid, standing.study.tuning_seeds
    scores = [
        [_score(standing, run_name(setting, arm, point, seed)) for seed in seeds]
        for point in points
    ]
    choice = plan.choices.get((setting, arm))
    return Tuning(setting, arm, [point_name(point) for point in points], scores, choice)


def _score(standing: Standing, name: str) -> float:
    return standing.scores.get(name, math.nan)
