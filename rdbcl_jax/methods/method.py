"""The contract of a method: what it makes of responses and rewards; all else is the engine's.

A method is a description. Its formulas are composed of `core` functions; its other fields ask the
engine for what the formulas need. It owns no arrays: a tracker's state and what a method keeps
between tasks live in the engine's checkpoint.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import ArrayLike, TrainBatch
from rdbcl_jax.config import Reference
from rdbcl_jax.core.losses import LossTerms, policy_loss_terms
from rdbcl_jax.data.records import Record
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.scored import ScoredRollouts


class Targets(NamedTuple):
    """What a method wants of each sample. No gradient flows through any of it."""

    advantages: Float[Array, "P G"] | Float[Array, "P G T"]
    kl_coef: float | Float[Array, "P G"] = 0.0
    values: dict[str, Float[Array, "P G"]] = {}  # noqa: RUF012 (worth logging, such as RP)


# (batch, log-probs of the policy that sampled, its entropies where `Method.entropies`) -> Targets.
# Runs inside the jitted update, over the whole batch.
TargetFunction = Callable[
    [TrainBatch, Float[Array, "P G T"], Float[Array, "P G T"] | None], Targets
]


class Fewest(NamedTuple):
    """The smallest batch with something of all that a method wants in it."""

    prompts: int = 1
    why: str = ""  # the field that asks for it, and what it would come to in a smaller one


ANY = Fewest()


def fewest(count: Callable[[int], int], why: str) -> Fewest:
    """The smallest number of prompts of which `count`, which grows with it, is not 0."""
    return Fewest(1 + bisect.bisect_left(range(1, 2**62), 1, key=count), why)


class Tracker(NamedTuple):
    """A memory of each prompt of a task, as pure functions on a pytree of arrays.

    Attributes:
      start: success of each prompt under the policy from before the task, [N] in [0, 1] (½ where
        unknown) → state.
      baselines: (state, prompts [P]) → [P], the update's `prompt_values`.
      observe: (state, prompts [n], rewards [n], mean KL to the reference in the previous update,
        or None) → state. Called once per batch, with the rows of all processes.
      carried: whether the next task goes on from the state that a task leaves. It is then of the
        run and not of prompts: its shape does not depend on N.
    """

    start: Callable[[Float[Array, "N"]], object]
    baselines: Callable[[object, Int[Array, "P"]], Float[ArrayLike, "P"]]
    observe: Callable[[object, Int[Array, "n"], Float[Array, "n"], float | None], object]
    carried: bool = False

    def blank(self, prompts: int) -> object:
        """The state before anything was seen of so many prompts, on the host."""
        return jax.device_get(self.start(jnp.full(prompts, 0.5, jnp.float32)))


class Survey(NamedTuple):
    """Fresh responses of the policy to every prompt of a task, and what is made of them.

    Attributes:
      every: steps from one to the next, of which the first comes before a task's first step; 0: no
        other.
      samples: responses to each prompt.
      value: of one prompt: (texts, which of them are right) → number.
    """

    every: int
    samples: int
    value: Callable[[Sequence[str], Bool[np.ndarray, "G"]], float]


class Filter(NamedTuple):
    """Which prompts of a task are learned from, decided once, before its first step.

    Attributes:
      survey: what is asked of all prompts.
      keeps: the survey's values [N] → which prompts pass.
    """

    survey: Survey
    keeps: Callable[[Float[np.ndarray, "N"]], Bool[np.ndarray, "N"]]


class PromptSampler(NamedTuple):
    """Chooses the prompts of each batch by what is known of them, as pure functions on a pytree of
    NumPy arrays of a row a prompt, kept with a task's state. Without one every prompt comes once a
    pass. With a filter `choose` is shown, and chooses from, the prompts that pass.

    Attributes:
      start: number of a task's own prompts, N → state.
      choose: (state, rng, size, progress) → prompts [size] in [0, N). `rng` is of the batch alone;
        `progress`: the share of the task's steps that are made, in [0, 1).
      observe: (state, prompts [n], rewards [n, G]) → state, once a batch, with the rows of all
        processes; NaN: a reward that does not apply. None: it sees nothing.
      survey: what it asks of all prompts from time to time.
      refresh: (state, the survey's values [N]) → state.
    """

    start: Callable[[int], object]
    choose: Callable[[object, np.random.Generator, int, float], Int[np.ndarray, "size"]]
    observe: Callable[..., object] | None = None
    survey: Survey | None = None
    refresh: Callable[[object, Float[np.ndarray, "N"]], object] | None = None


class Draws(Protocol):
    """What a revision may ask the engine for. Every process asks for the same, in one order."""

    policy: Policy
    rng: np.random.Generator  # of the step alone
    task_step: int  # of the task, from 0
    task_steps: int  # how many the task has

    def next_batch(self) -> ScoredRollouts:
        """Responses to the next batch of prompts."""
        ...

    def again(
        self, scored: ScoredRollouts, wanted: Bool[np.ndarray, "P"]
    ) -> tuple[ScoredRollouts, Int[np.ndarray, "n"]]:
        """`rollout.samples` more responses to these of the prompts, and to some others that fill
        the batch; and which row each of them is."""
        ...


# (scored rollouts of a step, draws) -> those that the update learns from. On the host; all arrays
# hold this process's rows.
Revision = Callable[[ScoredRollouts, Draws], ScoredRollouts]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to learn a task.

    Attributes:
      name: as in `config.method`.
      targets: advantages and KL coefficients of a batch.
      loss: sums and counts of the loss, with `core.losses.policy_loss_terms`' signature.
      responses: "sampled" by the policy; "demonstrations": `demonstration` of each record, and
        nothing is sampled; "none": nothing is learned.
      reference: the frozen policy of the KL term; None: no KL term, and it is never run.
        "previous": from before the task. "base": from before the first. "ema": the moving
        average of the policies at the tasks' boundaries.
      policy: the targets read the log-probs of the policy that sampled. (Under gradient
        accumulation they cost a pass of their own.)
      previous: the targets read the log-probs of the policy from before the task; implies `policy`.
      entropies: the targets read the policy's entropies; implies `policy`.
      entropy_bonus: weight of the policy's entropy, which lowers the loss.
      demonstration: the reference response of a record.
      group: advantages compare the responses of a prompt, so one alone would say nothing.
      revise: what becomes of a step's scored rollouts before the update: groups replaced,
        demonstrations put in, some of the responses chosen.
      given: names of what it hands to the targets beside, as `ScoredRollouts.given`.
      previous_responses: how many responses per prompt of the policy from before the task join the
        group, as demonstrations.
      pretask: the pre-task statistic of each prompt, from one response of the policy from before
        the task, as `prompt_values`: the "confidence" of its reasoning, or its "success", with
        which a tracker starts.
      tracker: a memory of each prompt within a task.
      prompts: chooses each batch's prompts; None: every prompt once a pass, in random order.
      filter: which of a task's own prompts batches are made of; None: all.
      scheduled: what is made of a step depends on how many steps the task has.
      data: a task's own prompts; those of all tasks ("joint"); its own and some of the tasks before
        it ("replay"); or its own and old questions about its pictures ("questions").
      partly_anchored: its KL coefficient is, or may be, of some samples only.
      fewest_prompts: of a batch.
      fewest_samples: responses of a prompt with which it can be tried.
      consolidation: strength of the quadratic penalty on what mattered to earlier tasks (EWC).
      merge: share of the weights from before a task in the policy that the task leaves.
      reads: the options of methods that have an effect on it: fields as "kl.beta", and whole
        sections as "replay". Of the others, those that are set are named when a run starts.
    """

    name: str
    targets: TargetFunction
    loss: Callable[..., LossTerms] = policy_loss_terms
    responses: Literal["sampled", "demonstrations", "none"] = "sampled"
    reference: Reference | None = None
    policy: bool = False
    previous: bool = False
    entropies: bool = False
    entropy_bonus: float = 0.0
    demonstration: Callable[[Record], str | None] | None = None
    group: bool = False
    revise: Revision | None = None
    given: tuple[str, ...] = ()
    previous_responses: int = 0
    pretask: Literal["", "confidence", "success"] = ""
    tracker: Tracker | None = None
    prompts: PromptSampler | None = None
    filter: Filter | None = None
    scheduled: bool = False
    data: Literal["task", "joint", "replay", "questions"] = "task"
    partly_anchored: bool = False
    fewest_prompts: Fewest = ANY
    fewest_samples: int = 2
    consolidation: float = 0.0
    merge: float = 0.0
    reads: frozenset[str] = frozenset()

    @property
    def rehearses(self) -> bool:
        """Whether a share of a batch comes from earlier tasks."""
        return self.data in ("replay", "questions")

    @property
    def asks_once(self) -> bool:
        """Whether the filter and the prompt sampler ask all prompts the same, before the task."""
        if self.filter is None or self.prompts is None:
            return False
        return self.filter.survey == self.prompts.survey

    def reading(self, *options: str) -> Method:
        """The same, which reads these options too."""
        return dataclasses.replace(self, reads=self.reads | {*options})

    def without(self, *options: str) -> Method:
        """The same, which does not read these."""
        return dataclasses.replace(self, reads=self.reads - {*options})

    @property
    def memorises(self) -> bool:
        """Whether demonstrations may take the place of sampled responses."""
        return self.demonstration is not None and self.responses == "sampled"
