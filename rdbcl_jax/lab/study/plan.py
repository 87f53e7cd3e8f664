"""Which runs a study needs, from what is known so far: a pure function of scores.

A chosen point is known once its arm's tuning runs are over, so a study is planned anew after every
run. Nothing but the runs' own workdirs remembers how far it has come.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rdbcl_jax.lab.study.declare import REFERENCE, Arm, Study, point_name, texts
from rdbcl_jax.lab.study.selection import Choice, choose

Scores = Mapping[str, float]  # of finished runs by name, on validation; NaN: there is none


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a pure function of `config`.

    Attributes:
      name: of its workdir, below `runs/`.
      group: setting and arm; runs of a group use the same programs, or nearly so.
      config: resolved.
      needs: names of other arms' runs that must be finished first.
      round: 0 for what tunes, then the report seed's place, from 1. Rounds go one after another, so
        a study that is stopped compares all that it has over the same seeds.
    """

    name: str
    group: tuple[str, str]
    config: ConfigDict
    needs: tuple[str, ...]
    round: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a study has to run.

    Attributes:
      runs: all that are known, by name, in the order in which they should run.
      choices: (setting, arm) → the choice, None where no point is left; absent until known.
      points: (setting, arm) → the chosen point; absent until known and where none is left.
      undecided: runs that wait for a choice, and so have no config yet.
    """

    runs: dict[str, Run]
    choices: dict[tuple[str, str], Choice | None]
    points: dict[tuple[str, str], dict[str, Any]]
    undecided: int


def run_name(setting: str, arm: str, point: Mapping[str, Any], seed: int) -> str:
    """`main/grpo/kl.beta=0.1/seed0`."""
    return "/".join(part for part in (setting, arm, point_name(point), f"seed{seed}") if part)


def make_plan(study: Study, scores: Scores, root: pathlib.Path) -> Plan:
    """The runs that are wanted, given the scores of those that are over.

    Args:
      root: folder of the runs' workdirs, which references to other arms' runs point into.
    """
    return _Planner(study, scores, root).plan()


class _Planner:
    def __init__(self, study: Study, scores: Scores, root: pathlib.Path):
        self.study, self.scores, self.root = study, scores, root
        self.choices: dict[tuple[str, str], Choice | None] = {}
        self.points: dict[tuple[str, str], dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        self.undecided = 0

    def plan(self) -> Plan:
        study = self.study
        places = [(setting, arm) for setting in study.settings for arm in study.arms]
        for setting, arm in places:
            if len(study.arms[arm].grid) > 1:
                for point in study.arms[arm].grid:
                    self._add(setting, arm, point, study.tuning_seeds)
        for setting, arm in places:
            self._choose(setting, study.arms[arm])
        for setting, arm in places:
            self._add_chosen(setting, arm, {})
        for curve in study.curves:
            for setting in study.settings:
                for point in curve.points.values():
                    self._add_chosen(setting, curve.arm, point)
        return Plan(self.runs, self.choices, self.points, self.undecided)

    def _choose(self, setting: str, arm: Arm) -> None:
        """Settles the arm's point, if its tuning runs are over."""
        place, points = (setting, arm.name), [dict(point) for point in arm.grid] or [{}]
        if len(points) == 1:
            self.points[place] = points[0]
            return
        names = self._tuned(setting, arm)
        if all(name in self.scores for name in names):
            found = np.reshape([self.scores[name] for name in names], (len(points), -1))
            choice = choose(points, found.tolist())
            self.choices[place] = choice
            if choice:
                self.points[place] = points[choice.index]

    def _tuned(self, setting: str, arm: Arm) -> list[str]:
        """The runs that choose the arm's point, point by point."""
        seeds = self.study.tuning_seeds
        return [run_name(setting, arm.name, p, seed) for p in arm.grid for seed in seeds]

    def _add_chosen(self, setting: str, arm: str, point: Mapping[str, Any]) -> None:
        """Report runs at the chosen point, changed by `point`."""
        full = at_chosen(self.study.arms[arm], point, self.points.get((setting, arm)))
        if full is not None:
            self._add(setting, arm, full, self.study.report_seeds)
        elif (setting, arm) not in self.choices:
            self.undecided += len(self.study.report_seeds)

    def _add(self, setting: str, arm: str, point: Mapping, seeds: Iterable[int]) -> None:
        for seed in seeds:
            name = run_name(setting, arm, point, seed)
            if name not in self.runs:
                self._add_run(name, setting, arm, point, seed)

    def _add_run(self, name: str, setting: str, arm: str, point: Mapping, seed: int) -> None:
        config = self.study.config(setting, arm, point, seed)
        referred = {other for text in texts(config.to_dict()) for other in REFERENCE.findall(text)}
        workdirs, needs = {}, []
        for other in sorted(referred):
            chosen = self.points.get((setting, other))
            if chosen is None:
                if (setting, other) not in self.choices:
                    self.undecided += 1
                    return
                needs += self._tuned(setting, self.study.arms[other])  # not all of them are there
                continue
            needed = run_name(setting, other, chosen, seed)
            self._add(setting, other, chosen, [seed])
            needs.append(needed)
            workdirs[other] = str(self.root / needed)
        if referred:
            config = ConfigDict(_filled(config.to_dict(), workdirs))
        seeds = self.study.report_seeds
        place = seeds.index(seed) + 1 if seed in seeds else 0
        self.runs[name] = Run(name, (setting, arm), config, tuple(needs), place)


def at_chosen(
    arm: Arm, point: Mapping[str, Any], chosen: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """A point with the arm's other grid fields at their chosen values.

    Returns:
      None where that takes a choice (`chosen`) that is not known.
    """
    if chosen is not None:
        return {**chosen, **point}
    free = {field for other in arm.grid for field in other} - point.keys()
    return None if free else dict(point)


def _filled(value: Any, workdirs: Mapping[str, str]) -> Any:
    """The value with the workdirs that its texts refer to."""
    if isinstance(value, str):
        return REFERENCE.sub(lambda match: workdirs.get(match[1], match[0]), value)
    if isinstance(value, Mapping):
        return {name: _filled(item, workdirs) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, workdirs) for item in value)
    return value


def ready(plan: Plan, scores: Scores, busy: Iterable[str]) -> list[Run]:
    """Runs that can start now."""
    taken = {*scores, *busy}
    return [
        run
        for name, run in plan.runs.items()
        if name not in taken and all(math.isfinite(scores.get(n, math.nan)) for n in run.needs)
    ]


def blocked(plan: Plan, scores: Scores) -> dict[str, str]:
    """Runs that can never start, and which other's policy each of them has waited for."""
    found = {}
    for name, run in plan.runs.items():
        lost = [n for n in run.needs if math.isnan(scores.get(n, 0.0))]
        if name not in scores and lost:
            found[name] = lost[0]
    return found
