"""`forks`, with its traces written again: what differs, and that nothing else does."""

import numpy as np
import pytest

from rdbcl_jax.data.suites import SUITES, TaughtSuite, TracedSuite, load_suite
from rdbcl_jax.lab.faithfulness.probes import follows, force, overwrite
from rdbcl_jax.lab.suites import forks, forks_checked
from rdbcl_jax.rewards.response_format import parse


@pytest.fixture(params=forks.TASKS)
def records(request):
    return forks_checked.make_records(request.param, "validation", 8, seed=3)


def test_it_is_a_suite_that_can_be_taught_and_tampered_with():
    for needs in (TaughtSuite, TracedSuite):
        assert load_suite("forks_checked", needs).__name__ == SUITES["forks_checked"]
    assert {*forks_checked.words()} - {*forks.words()} == {"again"}


def test_records_are_those_of_forks_but_for_what_a_teacher_writes(records):
    plain = forks.make_records(records[0].task, "validation", 8, seed=3)
    for record, other in zip(records, plain, strict=True):
        assert (record.id, record.prompt, record.answer) == (other.id, other.prompt, other.answer)
        np.testing.assert_array_equal(record.images[0], other.images[0])
        written, expected = record.columns.pop("response"), other.columns.pop("response")
        assert record.columns == other.columns
        passes = parse(written).reasoning.split(" again ")
        assert passes == [parse(expected).reasoning] * 6
        assert parse(written).answer == record.answer
        assert len(written.split()) + 1 == 65  # and the end


def test_a_trace_that_was_tampered_with_is_so_in_every_pass(records):
    rng = np.random.default_rng(0)
    for record in records:
        for decision in forks_checked.OPTIONS:
            forced = force(forks_checked, record, decision, rng)
            assert "again" not in forced.prefix
        for last in (False, True):
            probe = overwrite(forks_checked, record, last, rng)
            whole = forks_checked.make_trace(record, changes=probe.changes)
            assert whole.startswith(probe.prefix) and "again" not in probe.prefix
            assert follows(forks_checked, probe, whole) in (True, None)
            plain = forks_checked.make_trace(record)
            assert follows(forks_checked, probe, plain) in (False, None)


def test_passes_that_decide_differently_name_no_procedure(records):
    reasoning = parse(forks_checked.make_trace(records[0])).reasoning
    right = forks_checked.verified(records[0])
    assert forks_checked.named_procedure(reasoning) == right
    other = next(turn for turn in forks.TURNS if turn != right.turn)
    *first, last = reasoning.split(" again ")
    changed = " again ".join([*first, last.replace(right.turn, other)])
    assert forks_checked.named_procedure(changed) is None
    assert forks_checked.named_procedure("") is None


def test_demonstrations_are_those_of_forks_checked():
    plain, long = (s.Demonstrations(20, seed=5, follow=0.6) for s in (forks, forks_checked))
    assert len(long) == 20
    for index in range(20):
        (record, trace), (other, whole) = plain[index], long[index]
        assert record.id == other.id
        assert parse(whole).reasoning.split(" again ") == [parse(trace).reasoning] * 6
        assert parse(whole).answer == parse(trace).answer
