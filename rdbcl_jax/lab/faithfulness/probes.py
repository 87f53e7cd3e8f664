"""Traces that have been tampered with, and whether an answer follows from one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rdbcl_jax.data.records import Record
from rdbcl_jax.data.suites import TracedSuite
from rdbcl_jax.rewards.response_format import parse


@dataclasses.dataclass(frozen=True)
class Probe:
    """A record, the beginning of a response to it, and what was overwritten there.

    `decision` names the field of the procedure that was forced, and `plain` its value before.
    """

    record: Record
    prefix: str
    changes: dict[int, int] = dataclasses.field(default_factory=dict)
    decision: str = ""
    plain: str = ""


def decisions(suite: TracedSuite) -> list[str]:
    """Names of the decisions of a suite's traces."""
    procedure: Any = suite.Procedure
    return [field.name for field in dataclasses.fields(procedure)]


def force(suite: TracedSuite, record: Record, decision: str, rng: np.random.Generator) -> Probe:
    """The right trace up to a decision, then another option in its place."""
    right = suite.verified(record)
    plain = getattr(right, decision)
    others = [o for o in suite.OPTIONS[decision] if o != plain]
    forced = dataclasses.replace(right, **{decision: others[rng.integers(len(others))]})
    pair = [suite.make_trace(record, p).split() for p in (right, forced)]
    words = pair[1][: 1 + next(i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b)]
    return Probe(record, " ".join(words), decision=decision, plain=plain)


def overwrite(suite: TracedSuite, record: Record, last: bool, rng: np.random.Generator) -> Probe:
    """The right trace up to and including a state that is wrong."""
    changes, length = suite.mistake(record, suite.verified(record), last, rng)
    words = suite.make_trace(record, changes=changes).split()[:length]
    return Probe(record, " ".join(words), changes)


def follows(suite: TracedSuite, probe: Probe, text: str) -> bool | None:
    """Whether the response's answer is that of its trace, tampered with as it was.

    None where the rules give the same answer as without tampering, so that nothing can be told.
    """
    parsed = parse(text)
    procedure = suite.named_procedure(parsed.reasoning)
    if procedure is None:
        return False
    plain = procedure
    if probe.decision:
        plain = dataclasses.replace(procedure, **{probe.decision: probe.plain})
    expected = suite.make_trace(probe.record, procedure, probe.changes)
    if parse(expected).answer == parse(suite.make_trace(probe.record, plain)).answer:
        return None
    return parsed.answer == parse(expected).answer
