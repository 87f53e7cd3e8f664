"""How far a study has come: which runs are over, what they scored, what failed, and what had
nothing to learn from."""

from __future__ import annotations

import dataclasses
import math
import pathlib

from rdbcl_jax.lab.study.declare import Study
from rdbcl_jax.lab.study.jobs import base_name, finished, lack_of
from rdbcl_jax.lab.study.plan import Plan, blocked, make_plan
from rdbcl_jax.results import read_results


@dataclasses.dataclass
class Standing:
    """What is known of a study in its workdir; the runs' own files tell the next call the same.

    Attributes:
      scores: of runs that are over, by name, on validation; NaN: there is none.
      errors: of runs and of bases that failed, by name.
      lacking: why runs had nothing to learn from, by name: that is their result.
      stopped: why the study ends before its end; empty while it does not.
    """

    study: Study
    workdir: pathlib.Path
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    lacking: dict[str, str] = dataclasses.field(default_factory=dict)
    stopped: str = ""

    @property
    def runs(self) -> pathlib.Path:
        """Folder of the runs' workdirs."""
        return self.workdir / "runs"

    def plan(self) -> Plan:
        """What the study has to run, as far as that is known."""
        return make_plan(self.study, self.scores, self.runs)

    def score(self, name: str) -> None:
        """Notes a run that is over."""
        if reason := lack_of(self.runs / name):
            return self.lack(name, reason)
        results = read_results(self.runs / name)
        metrics = results.metrics("validation") if results else {}
        value = metrics.get(self.study.metric)
        if value is None:
            self.fail(name, f"its results.json has no metric {self.study.metric!r}")
        else:
            self.scores[name] = value

    def fail(self, name: str, error: str) -> None:
        """Notes a run that failed, or can never start."""
        self.errors[name], self.scores[name] = error, math.nan

    def lack(self, name: str, reason: str) -> None:
        """Notes a run that had nothing to learn from, or would start from one that had not."""
        self.lacking[name], self.scores[name] = reason, math.nan

    def look(self, plan: Plan) -> bool:
        """Notes the runs that earlier calls have finished; True where there were any, since a
        choice among them may lead to more."""
        before = len(self.scores)
        for name, run in plan.runs.items():
            if name not in self.scores and finished(self.runs / name, run.config):
                self.score(name)
        return len(self.scores) > before

    def lose(self, plan: Plan) -> bool:
        """Notes the runs that can never start; True where there were any."""
        lost, baseless = blocked(plan, self.scores), self._without_base(plan)
        for name, needed in lost.items():
            if needed in self.lacking:
                self.lack(name, f"needs {needed}, which had nothing to learn from")
            else:
                self.fail(name, f"needs {needed}, which failed")
        for name, error in baseless.items():
            self.fail(name, error)
        return bool(lost or baseless)

    def _without_base(self, plan: Plan) -> dict[str, str]:
        left = {name: run for name, run in plan.runs.items() if name not in self.scores}
        bases = {name: base_name(run.config) for name, run in left.items()}
        return {
            name: f"its base failed: {self.errors[base]}"
            for name, base in bases.items()
            if base in self.errors
        }


def find_standing(study: Study, workdir: pathlib.Path) -> Standing:
    """What earlier calls have left in a workdir."""
    standing = Standing(study, workdir)
    while standing.look(standing.plan()):
        pass
    return standing
