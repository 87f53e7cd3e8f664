"""The checks of one model: numbers, and the ranges in which they pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.suites import TracedSuite, find_task
from rdbcl_jax.lab.config import FaithfulnessOptions
from rdbcl_jax.lab.faithfulness.probes import decisions, follows, force, overwrite
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.response_format import Parsed, parse
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.rollout.generate import generate_texts
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.toy.options import BaseOptions
from rdbcl_jax.training.supervised import fine_tune


@dataclasses.dataclass(frozen=True)
class Check:
    """One number of one task, and the range in which it passes."""

    task: str
    name: str
    value: float  # a fraction; NaN where nothing could be counted
    count: int
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


def gate(
    policy: Policy,
    trained: Trained,
    config: RunConfig,
    options: FaithfulnessOptions,
    *,
    zero_shot: bool = False,
) -> list[Check]:
    """Every check of every task of `config.sequence`, with the thresholds of `options`.

    Args:
      zero_shot: also check that the accuracy of a plain greedy response is in its range.
    Raises:
      ValueError: a task of no suite, or of one whose traces are not known.
    """
    answer = functools.partial(respond, policy, trained, config=config)
    checks = []
    for name in config.sequence:
        checks += _gate_task(answer, config.data.seed, options, name, zero_shot)
    if options.answer_only_steps:
        checks += _answer_only(policy, trained, config, options)
    return checks


def _gate_task(
    answer, seed: int, options: FaithfulnessOptions, name: str, zero_shot: bool
) -> list[Check]:
    suite, task = find_task(name, TracedSuite)
    records = suite.make_records(task, "validation", options.records, seed)
    rng = np.random.default_rng([options.records, seed])
    probes = {f"force {d}": [force(suite, r, d, rng) for r in records] for d in decisions(suite)}
    probes["corrupt"] = [overwrite(suite, record, False, rng) for record in records]
    probes["last"] = [overwrite(suite, record, True, rng) for record in records]
    checks = []
    if zero_shot:
        right = _right(records, answer(records, [""] * len(records)))
        checks.append(Check(task, "zero-shot", *_mean(right), *options.zero_shot))
    for check, made in probes.items():
        texts = answer(records, [probe.prefix for probe in made])
        found = [follows(suite, p, t) for p, t in zip(made, texts, strict=True)]
        low = options.follow_decision if check.startswith("force") else options.follow_state
        checks.append(Check(task, check, *_mean([f for f in found if f is not None]), low, 1.0))
    return [*checks, _foreign(answer, options, suite, task, records)]


def _foreign(answer, options, suite: TracedSuite, task: str, records: Sequence[Record]) -> Check:
    """Accuracy with the trace of the record before, less what coincidence alone gives."""
    others = [records[-1], *records[:-1]]
    traces = [suite.make_trace(other).split("</think>")[0] + "</think>" for other in others]
    right = _right(records, answer(records, traces))
    chance = [_correct(r, Parsed("", o.answer, True)) for r, o in zip(records, others, strict=True)]
    excess = float(np.mean(right) - np.mean(chance))
    return Check(task, "foreign", excess, len(records), -1.0, options.foreign_excess)


# ---------------------------------------------------------------------- answers without a trace


class _AnswersOnly:
    """Demonstrations of the right answers: the trace holds its decisions, but no states."""

    def __init__(self, tasks: Sequence[str], count: int, seed: int):
        self.tasks = [find_task(name, TracedSuite) for name in tasks]
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Record, str]:
        suite, task = self.tasks[index % len(self.tasks)]
        record = suite.make_record(task, "train", index, self.seed)
        return record, f"{_bare(suite, record)} <answer> {record.answer} </answer>"


def _bare(suite: TracedSuite, record: Record) -> str:
    return " ".join(("<think>", *dataclasses.astuple(suite.verified(record)), "</think>"))


def _answer_only(
    policy: Policy, trained: Trained, config: RunConfig, options: FaithfulnessOptions
) -> list[Check]:
    """Accuracy of a model taught to answer at once: how far perception alone goes."""
    base, steps = config.section(BaseOptions), options.answer_only_steps
    source = _AnswersOnly(config.sequence, steps * base.batch_size, base.seed)
    trained = fine_tune(
        policy,
        trained,
        source,
        base.optimizer,
        steps=steps,
        batch_size=base.batch_size,
        chunk_size=config.training.chunk_size,
        seed=base.seed,
        threads=config.data.threads,
    )
    checks = []
    for suite, task in source.tasks:
        records = suite.make_records(task, "validation", options.records, config.data.seed)
        traces = [_bare(suite, record) for record in records]
        right = _right(records, respond(policy, trained, records, traces, config))
        checks.append(Check(task, "answer only", *_mean(right), 0.0, options.answer_only))
    return checks


# ---------------------------------------------------------------------- pieces


def respond(
    policy: Policy,
    trained: Trained,
    records: Sequence[Record],
    prefixes: Sequence[str],
    config: RunConfig,
) -> list[str]:
    """Greedy responses, each from its prefix on; the prefix is part of what is returned."""
    return generate_texts(
        policy,
        policy.whole(trained),
        records,
        sampling_of(policy, config.rollout, greedy=True),
        jax.random.key(0),  # greedy: never drawn from
        batch_size=config.evaluation.batch_size,
        prefixes=prefixes,
    )


def _right(records: Sequence[Record], texts: Sequence[str]) -> list[bool]:
    return [_correct(r, parse(t)) for r, t in zip(records, texts, strict=True)]


def _correct(record: Record, parsed: Parsed) -> bool:
    return get_verifier(record.verifier).score(parsed.answer, record.answer) == 1


def _mean(found: Sequence[bool]) -> tuple[float, int]:
    return (float(np.mean(found)) if found else float("nan")), len(found)
