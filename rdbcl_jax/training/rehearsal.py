"""The prompts of earlier tasks that a method rehearses: records that were kept, or old questions
about the new task's pictures (pseudo-rehearsal, after Robins 1995)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from rdbcl_jax.data.indexed import Joined, Made, only
from rdbcl_jax.data.pictures import Picture
from rdbcl_jax.data.pipeline import EvalBatch
from rdbcl_jax.data.prompts import PromptEncoder, ReadRecord
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.tasks import TaskData
from rdbcl_jax.methods.classic import ReplayOptions
from rdbcl_jax.methods.method import Survey
from rdbcl_jax.methods.prompts import success
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.rollout.generate import responses_to
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import all_hosts_rows
from rdbcl_jax.training import rng
from rdbcl_jax.training.learner import Learner
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.surveys import surveyed

_TRIED = 64  # records of the new task that are looked through for pictures


@phase("sampling")
def old_prompts(
    learner: Learner,
    tasks: Sequence[TaskData],
    k: int,
    previous: Trained,
    say: Callable[[str], None],
) -> list[Sequence[Record]]:
    """What batches of task k (from 0) rehearse of each task before it; empty for methods that
    rehearse nothing, where no old record is mastered, and where of all old questions none has an
    answer that could be a gold one.

    Args:
      previous: the policy from before the task, which answers old questions where they alone are
        kept, and has mastered some records.
      say: is told how many are left out.
    """
    options = learner.config.section(ReplayOptions)
    if not learner.method.rehearses or not k:
        return []
    kept = [task.train[: options.per_task] for task in tasks[:k]]
    if options.prompts == "mastered":
        return _mastered(learner, kept, previous, lambda text: say(f"note: {tasks[k].name} {text}"))
    if learner.method.data == "replay":
        return kept
    order = rng.of_rehearsal(learner.config.seed, k).permutation(len(tasks[k].train)).tolist()
    asked = Asked(Joined(kept), tasks[k].train, order)
    answered = list(_answered(learner, asked, previous))
    if len(answered) < len(asked):
        say(
            f"note: {tasks[k].name} rehearses {len(answered)} of {len(asked)} old questions; to "
            "others the policy from before it gives no answer in the required format, or they have "
            "no pictures here, or do not fit the batches' sizes"
        )
    return [answered] if answered else []


def _mastered(
    learner: Learner,
    kept: Sequence[Sequence[Record]],
    previous: Trained,
    say: Callable[[str], None],
) -> list[Sequence[Record]]:
    """Of the records kept of each task those that the previous policy's greedy answer solves."""
    sampling = sampling_of(learner.policy, learner.config.rollout, greedy=True)
    unused = jax.random.key(0)  # greedy: never drawn from
    shares = surveyed(learner, previous, Joined(kept), Survey(0, 1, success), unused, sampling)
    parts = np.split(shares > 0, np.cumsum([len(part) for part in kept])[:-1])
    places = [np.flatnonzero(right).tolist() for right in parts]
    found = [only(part, mastered) for part, mastered in zip(kept, places, strict=True)]
    count = sum(map(len, found))
    if count < len(shares):
        say(f"rehearses {count} of {len(shares)} old records: the others are not mastered")
    return [part for part in found if len(part)]


class Asked(Made):
    """Old questions, each about pictures of new records; their answers are not known.

    Question i is asked about the pictures of the new record `order[i]` and those that follow, as
    many as it had; one without pictures is asked as it is. Only the text of an old record is read.
    """

    def __init__(self, old: Sequence[Record], new: Sequence[Record], order: Sequence[int]):
        self.old, self.new, self.order = old, new, order

    def __len__(self) -> int:
        return len(self.old)

    def at(self, index: int) -> Record:
        question = self.old[index]
        pictures = self._pictures(index, len(question.images))
        return dataclasses.replace(
            question,
            id=f"{question.id}, asked again",
            images=pictures,
            answer="",
            answers=(),
            columns={},
            row={},  # which reward functions see too: its gold answer is another's
            where="",
        )

    def _pictures(self, index: int, count: int) -> tuple[Picture, ...]:
        found: list[Picture] = []
        tried = min(_TRIED, len(self.order))  # of each its pictures once
        for step in range(tried):
            if len(found) >= count:
                break
            found += self.new[self.order[(index + step) % len(self.order)]].images
        if len(found) < count:
            raise ValueError(
                f"record {self.old[index].id!r} of an earlier task is about {count} pictures, and "
                f"{tried} records of the new task have {len(found)}"
            )
        return tuple(found[:count])


def _answered(learner: Learner, asked: Asked, previous: Trained) -> Iterator[Record]:
    """The questions with the previous policy's greedy answer, where that can be a gold one."""
    policy: Policy = learner.policy
    fitting: list[Record] = []
    texts: list[str] = []  # on every process
    for batch in responses_to(
        _batches(policy, asked, learner.config.evaluation.batch_size, fitting),
        policy,
        policy.to_read(previous),
        sampling_of(policy, learner.config.rollout, greedy=True),
        jax.random.key(0),  # greedy: never drawn from
    ):
        rollouts = batch.host_rollouts()
        tokens, mask = (
            all_hosts_rows(np.asarray(a[:, 0]), policy.rows)
            for a in (rollouts.tokens, rollouts.mask)
        )
        texts += policy.texts(tokens, mask.astype(bool))
    for record, text in zip(fitting, texts, strict=False):  # the last batch is filled up
        found = parse(text)
        if found.ok and _could_be_gold(record, found.answer):
            yield dataclasses.replace(record, answer=found.answer)


def _batches(
    policy: Policy, asked: Asked, batch_size: int, fitting: list[Record]
) -> Iterator[EvalBatch]:
    """The questions that have pictures and that the batches' sizes hold, in order, each read once;
    these are appended to `fitting`."""
    readable = _readable(policy.encoder, asked)
    while group := [*itertools.islice(readable, batch_size)]:
        first, last = len(fitting), len(group) - 1
        fitting += [record for record, _ in group]
        wanted = policy.rows.rows(batch_size)
        mine = np.minimum(wanted, last)
        prompts = policy.encoder.batch([group[i][1] for i in mine], first + mine)
        yield EvalBatch(prompts, wanted <= last)


def _readable(encoder: PromptEncoder, asked: Asked) -> Iterator[tuple[Record, ReadRecord]]:
    for index in range(len(asked)):
        try:
            record = asked[index]
            (read,) = encoder.read([record])
            encoder.batch([read])  # it is too large for all sizes, or not
        except ValueError:
            continue
        yield record, read


def _could_be_gold(record: Record, answer: str) -> bool:
    judge = get_verifier(record.verifier)
    if judge.rescale:  # places in a picture: a gold one is in the picture's own size
        return False
    try:
        judge.prepared(answer)
    except ValueError:
        return False
    return True
