"""One task as the learner sees it, and what is kept of the policies between tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.indexed import Joined, only
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.tasks import TaskData
from rdbcl_jax.methods.method import Method
from rdbcl_jax.models.averages import averaged
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.training.update import Consolidation


@dataclasses.dataclass(frozen=True)
class Anchors:
    """The frozen policies of the tasks' boundaries, as the parameters that learn. Each is a copy
    of these, so what nothing reads is not kept.

    Attributes:
      previous: after the last task that was learned.
      kept: what `kl.reference` names, where that is another one: "base", from before the first
        task; "ema", the moving average over the boundaries, which starts at the base.
      fisher: what mattered to the tasks learned so far (EWC); None: not estimated.
    """

    previous: Trained
    kept: Mapping[str, Trained]
    fisher: Trained | None = None

    @classmethod
    def of_base(cls, base: Trained, reference: str | None) -> Anchors:
        """Those before the first task; `reference`: the method's."""
        return cls(base, {} if reference in (None, "previous") else {reference: base})

    def after(self, policy: Trained, *, ema_decay: float) -> Anchors:
        """The anchors after one more task, which made this policy. `ema_decay`: the share of the
        old average that is kept."""
        kept = dict(self.kept)
        if "ema" in kept:
            kept["ema"] = averaged(kept["ema"], policy, ema_decay)
        return dataclasses.replace(self, previous=policy, kept=kept)

    def frozen(self, held: Callable[[Trained], Trained]) -> Anchors:
        """The anchors as they are `held` while nothing changes them; that of the policy that learns
        on shares no array with it, which may then be donated."""

        def apart(a: jax.Array, own: jax.Array) -> jax.Array:
            return jnp.copy(a) if a is own else a

        previous = jax.tree.map(apart, held(self.previous), self.previous)
        kept = {n: previous if p is self.previous else held(p) for n, p in self.kept.items()}
        return dataclasses.replace(self, previous=previous, kept=kept)

    def reference(self, name: str | None) -> Trained:
        """The policy that `kl.reference` names: "previous" (or None), "base" or "ema"."""
        return self.previous if name in (None, "previous") else self.kept[name]


def dtype_of_frozen(config: RunConfig, method: Method) -> np.dtype[Any]:
    """In which the matrices of the policies are held that a task reads and does not change."""
    model = config.model
    averaged = method.merge or method.reference == "ema"
    if method.consolidation or averaged:  # differences to a policy, and sums of several
        return jnp.dtype(model.param_dtype)
    return jnp.dtype(model.reference_dtype or model.dtype)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a task is learned from.

    Attributes:
      records: the prompts. Those of earlier tasks, for methods that replay, come last.
      previous: the policy from before the task.
      reference: the policy of the KL term; the same object as `previous` where it is the same.
      replayed: how many of the records are of earlier tasks.
      consolidation: what EWC keeps of earlier tasks.
    """

    records: Sequence[Record]
    previous: Trained
    reference: Trained
    replayed: int = 0
    consolidation: Consolidation | None = None

    @property
    def own(self) -> int:
        """How many of the records, the first, are the task's own."""
        return len(self.records) - self.replayed

    @property
    def own_records(self) -> Sequence[Record]:
        """The task's own."""
        return only(self.records, range(self.own))


def make_stage(
    method: Method,
    tasks: Sequence[TaskData],
    k: int,
    anchors: Anchors,
    old: Sequence[Sequence[Record]] = (),
) -> Stage:
    """Task k (from 0) for a method, after the tasks before it.

    Args:
      old: the prompts of earlier tasks that it rehearses, see `training.rehearsal`.
    """
    own, old = [tasks[k].train], [*old]
    if method.data == "joint":
        own = [task.train for task in tasks]
    if method.responses == "demonstrations" and method.demonstration:
        own, old = ([_taught(part, method) for part in parts] for parts in (own, old))
    consolidation = None
    if method.consolidation and k:
        assert anchors.fisher is not None, "a task was learned, so its Fisher information is there"
        consolidation = Consolidation(anchors.previous, anchors.fisher)
    reference = anchors.reference(method.reference)
    replayed = sum(map(len, old))
    return Stage(Joined([*own, *old]), anchors.previous, reference, replayed, consolidation)


def _taught(records: Sequence[Record], method: Method) -> Sequence[Record]:
    """Those that have a demonstration."""
    assert method.demonstration, "asked for where the method has some"
    return only(records, [i for i, r in enumerate(records) if method.demonstration(r) is not None])
