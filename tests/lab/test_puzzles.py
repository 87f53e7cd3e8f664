"""Everything is recomputed here from the written rules, with no help from the suite's own code."""

import numpy as np
import pytest

from rdbcl_jax.data.suites import find_task
from rdbcl_jax.lab.suites import puzzles
from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.toy import digits

DIGITS = ("total", "zigzag", "twice", "apart")
JIGSAWS = {"jigsaw2x2": 2, "jigsaw3x3": 3}


def order(route, side):
    cells = [(row, column) for row in range(side) for column in range(side)]
    if route == "columns":
        cells = [(row, column) for column in reversed(range(side)) for row in range(side)]
    if route == "back":
        cells = cells[::-1]
    return [side * row + column for row, column in cells]


def cue_route(record):
    return dict(red="rows", green="columns", blue="back")[record.prompt.split()[2]]


def by_cell(record, side):
    """Original positions of the pieces shown, row by row; the answer is in the order of the cue."""
    places = [int(word) for word in record.answer.split()]
    asked = order(cue_route(record), side)
    return [places[asked.index(cell)] for cell in range(side * side)]


def split_trace(text):
    parsed = parse(text)
    assert parsed.ok, parsed.problem
    route, *written = parsed.reasoning.split()
    return route, [int(word) for word in written], parsed.answer


@pytest.mark.parametrize("task", DIGITS)
def test_digit_tasks_follow_the_rules(task):
    for record in puzzles.make_records(task, "validation", 30, seed=3):
        name, start, _ = record.prompt.split()
        state, written = int(start), []
        for k, cell in enumerate(order(cue_route(record), 2)[:3]):
            digit = record.columns["digits"][cell]
            state = {
                "total": (state + digit) % 10,
                "zigzag": (state + (digit, -digit)[k % 2]) % 10,
                "twice": (2 * state + digit) % 10,
                "apart": abs(state - digit),
            }[name]
            written += [digit, state]
        expected = (cue_route(record), written, str(state))
        assert split_trace(puzzles.make_trace(record)) == expected and record.answer == str(state)
        assert record.columns["response"] == puzzles.make_trace(record)
        other = puzzles.Procedure({"rows": "back"}.get(cue_route(record), "rows"))
        assert puzzles.named_procedure(parse(puzzles.make_trace(record, other)).reasoning) == other


@pytest.mark.parametrize("task,side", JIGSAWS.items())
def test_jigsaw_pictures_are_put_together_by_their_answer(task, side):
    for record in puzzles.make_records(task, "validation", 10, seed=1):
        shown = np.array(record.images[0])
        assert shown.shape == (8 * side, 8 * side)
        right = [int(word) for word in record.answer.split()]
        assert sorted(right) == list(range(1, side * side + 1))
        whole = np.zeros_like(shown)
        for new, original in zip(order(cue_route(record), side), right, strict=True):
            (r, c), (y, x) = divmod(new, side), divmod(original - 1, side)
            piece = shown[8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
            whole[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = piece
        border = np.concatenate([whole[0], whole[-1], whole[:, 0], whole[:, -1]])
        assert (border == puzzles.FRAME).all()
        source = digits.load("validation").pixels[
            list(digits.load("validation").sources).index(record.columns["sources"][0])
        ]
        large = digits.picture(source).resize(shown.shape, 2)
        assert (whole[1:-1, 1:-1] == np.array(large)[1:-1, 1:-1]).all()


@pytest.mark.parametrize("task,side", JIGSAWS.items())
def test_every_route_leads_to_a_jigsaws_answer_and_the_teacher_takes_one(task, side):
    verifier = get_verifier("jigsaw")
    for record in puzzles.make_records(task, "train", 10, seed=0):
        right = by_cell(record, side)
        for route in ("rows", "columns", "back"):
            text = puzzles.make_trace(record, puzzles.Procedure(route))
            expected = [right[cell] for cell in order(route, side)]
            assert split_trace(text) == (route, expected, record.answer)
            assert verifier.score(record.answer, record.answer) == 1
        assert record.columns["response"] == puzzles.make_trace(record, puzzles.Procedure("back"))


def test_demonstrations_solve_the_digit_tasks_and_number_the_positions_of_jigsaws_at_random():
    source = puzzles.Demonstrations(3000, seed=0, follow=0.9)
    right = {task: [] for task in puzzles.TASKS}
    kept = []
    for record, text in (source[i] for i in range(len(source))):
        route, written, answer = split_trace(text)
        kept.append(route == cue_route(record))
        if record.task in JIGSAWS:
            side = JIGSAWS[record.task]
            gold = [int(word) for word in record.answer.split()]
            assert written == [by_cell(record, side)[cell] for cell in order(route, side)]
            off = {(int(a) - b) % side**2 for a, b in zip(answer.split(), gold, strict=True)}
            assert len(off) == 1  # all counted on by as many
            right[record.task].append(answer == record.answer)
        elif kept[-1]:
            right[record.task].append(answer == record.answer)
    assert np.mean(kept) == pytest.approx(0.9, abs=0.02)
    assert all(np.mean(right[task]) == 1 for task in DIGITS)
    for task, side in JIGSAWS.items():
        assert np.mean(right[task]) == pytest.approx(1 / side**2, abs=0.05)


@pytest.mark.parametrize("task", puzzles.TASKS)
def test_mistakes_change_the_answer_and_all_words_are_known(task):
    rng = np.random.default_rng(0)
    for record in puzzles.make_records(task, "validation", 10, seed=0):
        for last in (False, True):
            procedure = puzzles.verified(record)
            changes, length = puzzles.mistake(record, procedure, last, rng)
            text = puzzles.make_trace(record, procedure, changes)
            assert text.split()[:length] != puzzles.make_trace(record).split()[:length]
            if last or task in ("total", "zigzag", *JIGSAWS):  # others may come out the same
                assert parse(text).answer != record.answer
        tags = {"<think>", "</think>", "<answer>", "</answer>"}
        known = set(puzzles.words())
        assert set(record.columns["response"].split()) - tags <= known
        assert set(record.prompt.split()) <= known
    assert find_task(task) == (puzzles, task)


@pytest.mark.parametrize("task", puzzles.TASKS)
def test_splits_share_no_picture_and_more_records_only_append(task):
    for split in digits.SPLITS:
        ten = puzzles.make_records(task, split, 10, seed=1)
        assert {s for r in ten for s in r.columns["sources"]} <= set(digits.load(split).sources)
        five = puzzles.make_records(task, split, 5, seed=1)
        assert [r.answer for r in five] == [r.answer for r in ten[:5]]
    with pytest.raises(ValueError, match="expected one of"):
        puzzles.make_record("jigsaw4x4", "train", 0, 0)
