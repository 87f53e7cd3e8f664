"""Everything is recomputed here from the written rules, with no help from the suite's own code."""

import itertools
import pathlib
import runpy

import numpy as np
import pytest
from transformers import AutoTokenizer

from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.suites import BUILT_IN, load_suite
from rdbcl_jax.lab.suites import forks
from rdbcl_jax.lab.suites.forks import FINISHES, ROUTES, TASKS, TURNS, Procedure
from rdbcl_jax.models import read_processor
from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.toy import digits, tiny

ROOT = pathlib.Path(__file__).parents[2]
ALL = [Procedure(*p) for p in itertools.product(ROUTES, TURNS, FINISHES)]
CUES = {
    word: (decision, cue)
    for decision, row in enumerate(
        (("red", "green", "blue"), ("day", "night", "dawn"), ("north", "east", "west"))
    )
    for cue, word in enumerate(row)
}
OPTIONS = (("rows", "columns", "back"), ("odd", "big", "rise"), ("top", "low", "ends"))


def next_state(task, state, digit, k):
    return {
        "add": (state + digit) % 10,
        "double": (2 * state + digit) % 10,
        "gap": abs(state - digit),
        "sub": (state - digit) % 10,
        "swing": (state + (digit, -digit)[k % 2]) % 10,
    }[task]


def order(route):
    """Cells of a 2 × 2 picture, numbered row by row, in reading order."""
    cells = [(row, column) for row in (0, 1) for column in (0, 1)]
    if route == "columns":
        cells = [(row, column) for column in (1, 0) for row in (0, 1)]
    if route == "back":
        cells = cells[::-1]
    return [2 * row + column for row, column in cells]


def read(record, task, state, cells, first, changes):
    written = []
    for k, cell in enumerate(cells, start=first):
        digit = record.columns["digits"][cell]
        state = changes.get(k, next_state(task, state, digit, k))
        written += [digit, state]
    return written


def solve(record, procedure, changes=()):
    """What the trace writes and the answer."""
    changes, cells = dict(changes), order(procedure.route)
    last = cells[3] if procedure.turn == "skip" else cells[2]
    start = int(record.prompt.split()[1])
    written = read(record, record.task, start, [*cells[:2], last], 0, changes)
    s, t, u = written[1::2]
    answers = {"top": max(s, t, u), "low": min(s, t, u), "ends": (s + u) % 10}
    return written, str(answers[procedure.finish])


def decide(record, meaning):
    """The procedure under `meaning`, which holds one number of an option per decision and cue."""
    route, test, finish = (
        OPTIONS[decision][meaning[decision][cue]]
        for decision, cue in (CUES[word] for word in record.prompt.split()[2:])
    )
    _, before, digit, state, *_ = solve(record, Procedure(route, "on", finish))[0]
    skip = {"odd": digit % 2 == 1, "big": state >= 5, "rise": state > before}[test]
    return Procedure(route, "skip" if skip else "on", finish)


def split_trace(text):
    parsed = parse(text)
    assert parsed.ok, parsed.problem
    route, a, b, c, d, turn, e, f, finish = parsed.reasoning.split()
    return Procedure(route, turn, finish), [int(w) for w in (a, b, c, d, e, f)], parsed.answer


@pytest.mark.parametrize("task", TASKS)
def test_traces_and_answers_follow_the_rules(task):
    for record in forks.make_records(task, "validation", 30, seed=3):
        for procedure in ALL:
            expected = (procedure, *solve(record, procedure))
            assert split_trace(forks.make_trace(record, procedure)) == expected
        right = decide(record, TASKS[task].wants)
        assert forks.verified(record) == right
        assert record.answer == solve(record, right)[1]
        assert split_trace(forks.make_trace(record))[-1] == record.answer
        assert forks.apply(record, forks.taught(record)) == decide(record, taught(task))


def taught(task):
    return [[(cue + TASKS[task].shift) % 3 for cue in range(3)]] * 3


@pytest.mark.parametrize("task", TASKS)
def test_verifier_accepts_the_answer_and_few_of_the_other_procedures(task):
    records = forks.make_records(task, "train", 300, seed=0)
    rates = []
    for procedure in ALL:
        scores = []
        for record in records:
            verifier = get_verifier(record.verifier)
            scores.append(verifier.score(solve(record, procedure)[1], record.answer) == 1)
        rates.append(np.mean(scores))
    assert 1 / 18 < np.mean(rates) < 0.35 and max(rates) < 0.75


@pytest.mark.parametrize("task", TASKS)
def test_answer_is_seldom_a_copy_of_the_last_state_and_never_easy_to_guess(task):
    records = forks.make_records(task, "train", 600, seed=4)
    last = [str(solve(r, decide(r, TASKS[task].wants))[0][-1]) for r in records]
    answers = [r.answer for r in records]
    assert np.mean([a == b for a, b in zip(answers, last, strict=True)]) < 0.45
    assert max(map(answers.count, answers)) < 0.3 * len(answers)


@pytest.mark.parametrize("task", TASKS)
def test_what_was_taught_solves_a_part_of_every_task(task):
    records = forks.make_records(task, "train", 600, seed=1)
    right = [solve(r, decide(r, taught(task)))[1] == r.answer for r in records]
    assert 0.2 < np.mean(right) < 0.6
    pairs = zip(taught(task), TASKS[task].wants, strict=True)
    agree = [sum(map(int.__eq__, a, b)) for a, b in pairs]  # cues of three, per decision
    assert min(agree) >= 1 and sum(agree) <= 6


def test_several_pairs_of_tasks_agree_in_a_decision_and_several_conflict():
    for decision in range(3):
        wants = [task.wants[decision] for task in TASKS.values()]
        agree = [sum(map(int.__eq__, a, b)) for a, b in itertools.combinations(wants, 2)]
        assert len(set(agree)) > 1 and sum(n <= 1 for n in agree) >= 2


@pytest.mark.parametrize("task", TASKS)
def test_both_turns_are_right_about_as_often_and_for_every_test(task):
    records = forks.make_records(task, "train", 600, seed=2)
    skips = [forks.verified(r).turn == "skip" for r in records]
    assert 0.25 < np.mean(skips) < 0.75


@pytest.mark.parametrize("task", TASKS)
def test_records_are_a_pure_function_of_their_arguments(task):
    ten = forks.make_records(task, "train", 10, seed=1)
    for a, b in zip(ten, forks.make_records(task, "train", 5, seed=1), strict=False):
        assert (a.id, a.prompt, a.answer, a.columns) == (b.id, b.prompt, b.answer, b.columns)
        assert a.images[0].tobytes() == b.images[0].tobytes()
    others = forks.make_records(task, "train", 10, seed=2)
    assert [r.images[0].tobytes() for r in ten] != [r.images[0].tobytes() for r in others]
    assert len({r.id for r in ten + others}) == 20


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", digits.SPLITS)
def test_pictures_come_from_their_split_only(task, split):
    own = set(digits.load(split).sources)
    for record in forks.make_records(task, split, 20, seed=0):
        assert set(record.columns["sources"]) <= own


def test_picture_shows_the_digits():
    pool = digits.load("test")
    pixels = dict(zip(pool.sources.tolist(), pool.pixels, strict=True))
    labels = dict(zip(pool.sources.tolist(), pool.labels.tolist(), strict=True))
    record = forks.make_record("add", "test", 0, seed=0)
    shown = np.asarray(record.images[0]) / 255
    for i, source in enumerate(record.columns["sources"]):
        row, column = divmod(i, 2)
        cell = shown[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_allclose(cell, pixels[source], atol=1 / 255)
        assert record.columns["digits"][i] == labels[source]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("last", [False, True])
def test_a_mistake_carries_on_to_the_answer(task, last):
    rng, changed = np.random.default_rng(0), 0
    for record in forks.make_records(task, "test", 20, seed=0):
        procedure = forks.verified(record)
        changes, length = forks.mistake(record, procedure, last, rng)
        ((step, state),) = changes.items()
        assert step == (2 if last else 1)
        plain, answer = solve(record, procedure)
        trace = forks.make_trace(record, procedure, changes)
        written, new_answer = solve(record, procedure, changes)
        assert split_trace(trace) == (procedure, written, new_answer)
        assert trace.split()[length - 1] == str(state) != str(plain[2 * step + 1])
        changed += new_answer != answer
    assert changed > 5


def test_demonstrations_follow_what_the_cues_were_taught_to_mean():
    source = forks.Demonstrations(3000, seed=0, follow=0.7)
    pairs = [source[i] for i in range(3000)]
    assert {record.task for record, _ in pairs} == set(TASKS)
    followed = []
    for record, response in pairs:
        procedure, written, answer = split_trace(response)
        assert (written, answer) == solve(record, procedure)
        right = decide(record, taught(record.task))
        followed.append([procedure.route == right.route, procedure.finish == right.finish])
    assert np.mean(followed, axis=0) == pytest.approx([0.7, 0.7], abs=0.03)
    assert np.corrcoef(*np.transpose(followed))[0, 1] == pytest.approx(0, abs=0.06)


def test_demonstrations_repeat_and_are_fresh():
    once, again = forks.Demonstrations(100, seed=7), forks.Demonstrations(100, seed=7)
    assert once[42][1] == again[42][1] and once[42][0].prompt == again[42][0].prompt
    assert len({once[i][0].images[0].tobytes() for i in range(100)}) == 100


def test_prompts_and_responses_fit_the_testbed(tmp_path):
    get_config = runpy.run_path(str(ROOT / "configs/studies/testbed.py"))["get_config"]
    first, second = get_config(), get_config("second")
    assert set(first.sequence) == set(second.sequence) == set(TASKS)
    assert first.sequence != second.sequence
    with pytest.raises(ValueError, match="'third'"):
        get_config("third")
    path = tiny.write_tiny_model(tmp_path, extra_words=forks.words())
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoder = PromptEncoder(
        tokenizer,
        read_processor(path, patch_slots=first.data.patch_slots),
        lengths=first.data.prompt_lengths,
        response_lengths=(first.rollout.max_tokens,),
    )
    for task in TASKS:
        records = forks.make_records(task, "test", 5, seed=0)
        batch = encoder.encode_supervised(records, [forks.make_trace(r) for r in records])
        assert set(batch.mask.sum(-1).flat) == {15} and first.rollout.max_tokens >= 15
        unknown = tokenizer.unk_token_id
        assert unknown not in batch.prompts.tokens and unknown not in batch.tokens


def test_named_procedure_takes_whole_traces_only():
    assert forks.named_procedure("rows 1 2 skip top") == Procedure("rows", "skip", "top")
    assert forks.named_procedure("rows 1 2 top") is None
    assert forks.named_procedure("rows back 1 2 on top") is None


def test_unknown_task():
    with pytest.raises(ValueError, match="'sum'"):
        forks.make_records("sum", "train", 1, seed=0)


def test_suites_whose_tasks_go_by_their_own_name_share_none():
    names = [task for suite in map(load_suite, BUILT_IN) for task in suite.TASKS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("task", TASKS)
def test_pseudo_reasoning_is_a_trace_that_the_answer_does_not_follow_from(task):
    right = 0
    for made in forks.make_records(task, "train", 64, seed=3):
        reasoning = forks.pseudo_reasoning(**made.columns, task=task, prompt="", answer="", id="")
        first, second, third, _ = made.columns["digits"]
        read_first = read(made, task, made.columns["start"], (0, 1), 0, {})
        written = [*read_first, *read(made, task, read_first[-1], (2,), 2, {})]
        assert written[::2] == [first, second, third]
        assert reasoning.split() == [
            "rows", *map(str, written[:4]), "on", *map(str, written[4:]), "top",
        ]  # fmt: skip
        right += str(max(written[1::2])) == made.answer
    assert right <= 32  # of 64: an answer has at most ten values, and some cues want this very way
