"""How a study is declared: a base config and what its arms change in it.

Everything that a part of a study changes is one kind of thing, *overrides*: a dict from dotted
fields of the run's config to values, `{"kl.beta": 0.1}`. A value may name another arm's run of the
same seed and setting: in `"{arm:grpo}/checkpoints"` the braces become that run's workdir.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.recipes import load_config
from rdbcl_jax.reporting.metric_table import CONTINUAL
from rdbcl_jax.results import RENAMED

Overrides = Mapping[str, Any]
REFERENCE = re.compile(r"\{arm:([^{}]+)\}")
NAME = re.compile(r"[\w .+=,()-]+")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method, or one form of it: a row of the table.

    Attributes:
      name: in tables and paths.
      overrides: what sets the arm apart from the base config.
      grid: points to choose from, each a set of overrides; the best on the validation split over
        the tuning seeds is run on the report seeds. Empty: nothing to choose.
    """

    name: str
    overrides: Overrides = dataclasses.field(default_factory=dict)
    grid: Sequence[Overrides] = ()

    def at_first(self) -> Arm:
        """The arm at the first point of its grid, with nothing left to choose: for small forms."""
        return Arm(self.name, {**self.overrides, **(self.grid[0] if self.grid else {})})


@dataclasses.dataclass(frozen=True)
class Curve:
    """One arm at several points, all run on the report seeds and all shown.

    Attributes:
      name: what the points' keys are; curves of one name share a picture and its x axis.
      arm: the arm whose overrides the points add to. Fields of its grid that a point leaves alone
        are at their chosen values.
      points: x value → overrides.
    """

    name: str
    arm: str
    points: Mapping[float, Overrides]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value on an axis that all arms share, such as another order of the tasks."""

    name: str
    overrides: Overrides = dataclasses.field(default_factory=dict)


def execute(file: str) -> None:
    """Runs a config file for what it registers, such as verifiers: FILE, or FILE:FORM where
    `get_config` takes the form; nothing where there is none."""
    path, colon, form = file.partition(":")
    if path:
        load_config(path, *([form] if colon else []))


def study_config(
    run: ConfigDict,
    arms: Sequence[Arm],
    *,
    baseline: str,
    report_seeds: Sequence[int],
    tuning_seeds: Sequence[int] = (),
    curves: Sequence[Curve] = (),
    settings: Sequence[Setting] = (Setting("main"),),
    metric: str = "last",
) -> ConfigDict:
    """A study as a config, so that its fields are flags: `--config.run.training.steps=20`.

    Args:
      run: the config that every run starts from.
      arms: rows of the table.
      baseline: the arm that the others are compared with, seed by seed.
      report_seeds: the seeds whose test accuracies are reported.
      tuning_seeds: those whose validation accuracies choose grids' points; none of `report_seeds`.
      curves: fields to sweep.
      settings: every arm and every curve is run in each of them.
      metric: by which points are chosen, the highest, and arms compared: of `continual_metrics`,
        and of `held_out_metrics` where tasks are held out (`evaluation.tasks`).
    """
    return ConfigDict(
        {
            "run": run,
            "arms": tuple(arms),
            "baseline": baseline,
            "report_seeds": tuple(report_seeds),
            "tuning_seeds": tuple(tuning_seeds),
            "curves": tuple(curves),
            "settings": tuple(settings),
            "metric": metric,
        }
    )


class Study:
    """A declaration that has been checked.

    Raises:
      ValueError: a declaration that cannot be run; it names the part that is wrong.
    """

    def __init__(self, config: ConfigDict):
        if "run" not in config or "arms" not in config:
            raise ValueError(
                "the config file declares no study (it has no `run` and no `arms`); expected "
                "one made by `study_config`, see configs/studies/"
            )
        self.run: ConfigDict = config.run
        self.arms: dict[str, Arm] = _by_name(config.arms, "arm")
        self.settings: dict[str, Setting] = _by_name(config.settings, "setting")
        self.curves: tuple[Curve, ...] = config.curves
        self.tuning_seeds: tuple[int, ...] = tuple(config.tuning_seeds)
        self.report_seeds: tuple[int, ...] = tuple(config.report_seeds)
        self.baseline: str = config.baseline
        self.metric: str = RENAMED.get(config.metric, config.metric)
        self._check()

    def _check(self) -> None:
        self._check_metric()
        for what, name in (
            ("the baseline", self.baseline),
            *((f"curve {curve.name!r}", curve.arm) for curve in self.curves),
            *((f"an override of arm {a.name!r}", n) for a in self.arms.values() for n in needs(a)),
        ):
            if name not in self.arms:
                raise ValueError(f"{what} names arm {name!r}, expected one of {list(self.arms)}")
        for name in self.arms:
            if name in _reached(self.arms, name):
                raise ValueError(f"arm {name!r} refers to runs that wait for its own")
        for seeds in (self.report_seeds, self.tuning_seeds):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"a seed is named twice in {seeds}")
        if not self.report_seeds:
            raise ValueError("report_seeds is empty, expected at least one seed")
        both = set(self.tuning_seeds) & set(self.report_seeds)
        if both:
            raise ValueError(
                f"seeds {sorted(both)} are tuning_seeds and report_seeds; a seed that chose a "
                "point must not report it"
            )
        tuned = [arm.name for arm in self.arms.values() if len(arm.grid) > 1]
        if tuned and not self.tuning_seeds:
            raise ValueError(f"arms {tuned} have a grid, but there are no tuning_seeds")
        for setting in self.settings.values():
            for arm in self.arms.values():
                for point in arm.grid or ({},):
                    self.config(setting.name, arm.name, point, self.report_seeds[0])
        for curve in self.curves:
            for point in curve.points.values():
                self.config(next(iter(self.settings)), curve.arm, point, self.report_seeds[0])

    def _check_metric(self) -> None:
        best = [name for name, metric in CONTINUAL.items() if not metric.less]
        if self.metric not in best:
            less = ", of which less is better" if self.metric in CONTINUAL else ""
            raise ValueError(
                f"metric is {self.metric!r}{less}; expected one of {best}, since points are chosen "
                f"by the highest{did_you_mean(self.metric, best)}"
            )
        if self.metric.startswith("held_out_") and not self.run.evaluation.tasks:
            raise ValueError(
                f"metric is {self.metric!r}, and no task is held out; expected some in "
                "run.evaluation.tasks"
            )

    def config(self, setting: str, arm: str, point: Overrides, seed: int) -> ConfigDict:
        """The config of one run, references to other arms still in it."""
        config = copy.deepcopy(self.run)  # keeps base.seed tied to seed, where it is
        for owner, overrides in (
            (f"setting {setting!r}", self.settings[setting].overrides),
            (f"arm {arm!r}", self.arms[arm].overrides),
            (f"a point of arm {arm!r}", point),
            ("the study", {"seed": seed}),
        ):
            try:
                override(config, overrides)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{owner}: {error}") from None
        return config.copy_and_resolve_references()


def override(config: ConfigDict, overrides: Overrides) -> None:
    """Sets dotted fields.

    Raises:
      ValueError: a field that the config does not have.
      TypeError: a value that is not of the field's type.
    """
    for field, value in overrides.items():
        *path, last = field.split(".")
        part = config
        for i, name in enumerate(path):
            if not isinstance(part, ConfigDict) or name not in part:
                raise ValueError(f"the config has no field {'.'.join(path[: i + 1])!r}")
            part = part[name]
        if not isinstance(part, ConfigDict) or last not in part:
            raise ValueError(f"the config has no field {field!r}")
        part[last] = value


def point_name(point: Overrides) -> str:
    """`kl.beta=0.1`: the same for the same overrides, and a name of a folder."""
    text = ",".join(f"{field}={_shown(point[field])}" for field in sorted(point))
    return re.sub(r"[^\w.=,+-]+", "_", text)


def _shown(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{float(value):.10g}"  # 1 and 1.0 are one setting
    return str(value)


def needs(arm: Arm) -> list[str]:
    """Arms whose runs an arm's overrides refer to."""
    values = [v for overrides in (arm.overrides, *arm.grid) for v in overrides.values()]
    found = (name for value in values for text in texts(value) for name in REFERENCE.findall(text))
    return list(dict.fromkeys(found))


def texts(value: Any) -> Iterator[str]:
    """All strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def _reached(arms: Mapping[str, Arm], name: str) -> set[str]:
    """Arms that an arm's runs wait for, directly or not."""
    found: set[str] = set()
    new = set(needs(arms[name]))
    while new:
        found |= new
        new = {n for other in new for n in needs(arms[other])} - found
    return found


def _by_name(items: Sequence[Any], what: str) -> dict[str, Any]:
    names = [item.name for item in items]
    wrong = [name for name in names if names.count(name) > 1 or not NAME.fullmatch(name)]
    if wrong or not names:
        raise ValueError(
            f"names of {what}s are {names}; expected at least one, each once, of letters, digits, "
            f"spaces and any of .+=,()-: {wrong}"
        )
    return {item.name: item for item in items}
