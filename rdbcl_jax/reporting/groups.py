"""Runs that differ in their seed alone, as one: grouped, labelled and paired by seed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rdbcl_jax.json_files import flatten
from rdbcl_jax.reporting.numbers import DASH
from rdbcl_jax.reporting.page import method_name
from rdbcl_jax.reporting.run_files import Run
from rdbcl_jax.workdir import WITHOUT_EFFECT, settings_of

MOST = 3  # fields in a label
NOT_CONFIGURATION = re.compile(r"^seed$|(^|[._])(workdir|out_dir)$")


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


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group by method and configuration; a label names only what sets a method's groups apart, or
    is a number where that is much."""
    known = dict.fromkeys(name for run in runs for name in flatten(run.results.config))
    configs = [
        settings_of(run.results.config, known) | {"tasks": run.tasks, "method": run.results.method}
        for run in runs
    ]
    _name_own_bases(configs)
    names = [name for name in _configuration(configs) if name != "method"]
    differing = [name for name in names if len({_key(c.get(name)) for c in configs}) > 1]
    found: dict[tuple, tuple[list[Run], dict[str, Any]]] = {}
    for run, config in zip(runs, configs, strict=True):
        fields = {name: config.get(name) for name in differing}
        key = (run.results.method, *map(_key, fields.values()))
        found.setdefault(key, ([], fields))[0].append(run)
    return [
        Group(_label(key, fields, found), members, fields)
        for key, (members, fields) in found.items()
    ]


def _configuration(configs: Iterable[dict[str, Any]]) -> list[str]:
    known = dict.fromkeys(name for config in configs for name in config)
    return [
        name
        for name in known
        if not NOT_CONFIGURATION.search(name) and not name.startswith(WITHOUT_EFFECT)
    ]


def _name_own_bases(configs: Sequence[dict[str, Any]]) -> None:
    """Where every run of a configuration has a base model of its own seed, that is what they have
    in common; runs of a single seed show it only where all configurations are such."""
    names = [name for name in _configuration(configs) if name != "base.seed"]
    alike: dict[tuple, list[dict[str, Any]]] = {}
    for config in configs:
        alike.setdefault(tuple(_key(config.get(name)) for name in names), []).append(config)
    own = [
        members
        for members in alike.values()
        if all("base.seed" in c and c["base.seed"] == c.get("seed") for c in members)
    ]
    for members in own:
        if len(own) == len(alike) or len({c["base.seed"] for c in members}) > 1:
            for config in members:
                config["base.seed"] = "the run's own"


def _label(key: tuple, fields: dict[str, Any], found: Iterable[tuple]) -> str:
    siblings = [other for other in found if other[0] == key[0]]
    own = [
        name for i, name in enumerate(fields) if len({sibling[i + 1] for sibling in siblings}) > 1
    ]
    last = [name.rsplit(".", 1)[-1] for name in own]
    short = [b if last.count(b) == 1 else name for name, b in zip(own, last, strict=True)]
    if len(own) > MOST:
        return f"{method_name(key[0])} {siblings.index(key) + 1}"
    parts = [f"{s}={show(fields[name])}" for s, name in zip(short, own, strict=True)]
    return method_name(key[0]) + (f" ({', '.join(parts)})" if parts else "")


def _key(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 are the same setting
    return json.dumps(value, sort_keys=True)


def show(value: Any) -> str:
    """A setting, in few words."""
    if value is None:
        return DASH
    if isinstance(value, list):
        return " > ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def paired(group: Group, base: Group, metric: str, split: str) -> np.ndarray:
    """Differences group − base over the seeds that both have."""
    ours, theirs = group.by_seed(metric, split), base.by_seed(metric, split)
    return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs], float)
