"""Accuracy on every task, by the parser and verifiers that also give the reward."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.continual_metrics import continual_metrics, held_out_metrics
from rdbcl_jax.data.indexed import Joined, verifiers_of
from rdbcl_jax.data.records import Record
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.results import SplitResults
from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.rewards.scoring import judge
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.rollout.scored import ScoredRollouts, generate_scored
from rdbcl_jax.sharding import all_hosts_sum


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Per task, in the order given: fractions in [0, 1] and the number of records. The accuracy of
    a graded verifier is the mean of its scores; that of captions their CIDEr-D, 0 to 10."""

    accuracy: list[float]
    parse_rate: list[float]
    count: list[int]

    def part(self, first: int, stop: int) -> Evaluation:
        """The tasks `first` … `stop` − 1."""
        cut = slice(first, stop)
        return Evaluation(self.accuracy[cut], self.parse_rate[cut], self.count[cut])


@dataclasses.dataclass(frozen=True)
class Answer:
    """A response to a record: whether it was right, in [0, 1], and in the required format."""

    record_id: str
    response: str
    gold: Any
    accuracy: float
    parsed: bool


def evaluate(
    policy: Policy,
    params: Trained,
    tasks: Sequence[Sequence[Record]],
    config: RunConfig,
    keep: Callable[[int, Answer], None] | None = None,
) -> Evaluation:
    """Greedy responses to every record of every task. Tasks share batches: one shape, no waste.

    Args:
      keep: is given every answer to a record of this process, with its task's place in `tasks`.
    """
    owners = np.repeat(np.arange(len(tasks)), [len(records) for records in tasks])
    records, judges = Joined(tasks), over_splits(tasks)
    totals = np.zeros((3, len(tasks)))
    for scored, valid in generate_scored(
        policy,
        params,
        records,
        judge,
        sampling_of(policy, config.rollout, greedy=True),
        jax.random.key(0),  # greedy: never drawn from
        batch_size=config.evaluation.batch_size,
    ):
        numbers = scored.responses.host_prompts.record_ids
        scored = judged_over_splits(scored, numbers, judges)
        scores, ids = scored.scores, numbers[valid]
        for row, value in enumerate((scores.accuracy, scores.parsed, np.ones(len(valid)))):
            np.add.at(totals[row], owners[ids], value[valid])
        if keep:
            for owner, answer in zip(owners[ids], _answers(scored, valid), strict=True):
                keep(int(owner), answer)
    correct, parsed, count = all_hosts_sum(totals, policy.rows)
    return Evaluation(
        accuracy=(correct / count).tolist(),
        parse_rate=(parsed / count).tolist(),
        count=count.astype(int).tolist(),
    )


def over_splits(tasks: Sequence[Sequence[Record]]) -> dict[int, Callable[[str], float]]:
    """What judges an answer over the whole split of its task, where the verifier does: such a
    number depends on all gold answers. By the record's number among those of all tasks: its id
    tells it from others of its source, and two splits may be two sources with the same ids."""
    judges: dict[int, Callable[[str], float]] = {}
    first = 0
    for records in tasks:
        for name in verifiers_of(records):
            if over_split := get_verifier(name).over_split:
                own = [i for i, record in enumerate(records) if record.verifier == name]
                golds = [records[i].answers or (records[i].answer,) for i in own]
                of_split = over_split(golds)
                for number, i in enumerate(own):
                    judges[first + i] = functools.partial(of_split, number)
        first += len(records)
    return judges


def judged_over_splits(
    scored: ScoredRollouts, numbers: Sequence[int], judges: Mapping[int, Callable[[str], float]]
) -> ScoredRollouts:
    """With the accuracy over its split for each record that has a judge. `numbers`: of the records,
    among those of all tasks."""
    if not judges:
        return scored
    accuracy = scored.scores.accuracy.copy()
    for row, (number, text) in enumerate(zip(numbers, scored.texts, strict=True)):
        if of_split := judges.get(int(number)):
            accuracy[row] = of_split(parse(text).answer)
    scores = dataclasses.replace(scored.scores, accuracy=accuracy)
    return dataclasses.replace(scored, scores=scores)


def _answers(scored: ScoredRollouts, valid: np.ndarray) -> Iterator[Answer]:
    for i in np.flatnonzero(valid):
        record, right = scored.records[i], float(scored.scores.accuracy[i])
        parsed = bool(scored.scores.parsed[i])
        yield Answer(record.id, scored.texts[i], record.answer, right, parsed)


def other_measures(tasks: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Of the tasks whose accuracy is no share of right answers: what the field calls it. All
    records of a task are taken to have the verifier of its first."""
    found = {name: get_verifier(records[0].verifier).measure for name, records in tasks.items()}
    return {name: measure for name, measure in found.items() if measure != "accuracy"}


def split_results(rows: Sequence[Evaluation], learned: int) -> SplitResults:
    """One split's part of results.json: matrices with row 0 = base model, and every metric.

    The first `learned` columns are the tasks of the sequence, in its order; others are held out.
    """
    accuracy = [row.accuracy for row in rows]
    metrics = {}
    if len(accuracy) == learned + 1:
        matrix = np.asarray(accuracy)
        metrics = continual_metrics(matrix[:, :learned])
        if matrix.shape[1] > learned:
            metrics |= held_out_metrics(matrix[:, learned:])
    return SplitResults(
        accuracy=accuracy,
        parse_rate=[row.parse_rate for row in rows],
        count=rows[0].count,
        metrics={name: float(value) for name, value in metrics.items()},
    )
