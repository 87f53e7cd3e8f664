"""Everything is recomputed here from the written rules, with no help from the suite's own code."""

import itertools

import numpy as np
import pytest
from PIL import Image

from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.toy import digits, digits_suite
from rdbcl_jax.toy.digits_suite import FINISHES, ROUTES, TASKS, Procedure

ALL = [Procedure(route, finish) for route in ROUTES for finish in FINISHES]


def order(route):
    """Cells of a 2 × 2 picture, numbered row by row, in reading order."""
    cells = [(row, column) for row in (0, 1) for column in (0, 1)]
    if route == "columns":
        cells = [(row, column) for column in (1, 0) for row in (0, 1)]
    if route == "back":
        cells = cells[::-1]
    return [2 * row + column for row, column in cells]


def next_state(task, state, digit, k):
    return {
        "sum": (state + digit) % 10,
        "alt": (state + (digit, -digit)[k % 2]) % 10,
        "horner": (2 * state + digit) % 10,
        "absd": abs(state - digit),
    }[task]


def solve(record, procedure, changes=()):
    """What the trace writes and the answer, by the rules in the module's text."""
    changes, cells = dict(changes), order(procedure.route)
    if record.task == "jigsaw":
        places = [record.columns["places"][tile] for tile in cells]
        places = [changes.get(k, place) for k, place in enumerate(places)]
        finish = {"next": lambda p: p + 1, "flip": lambda p: 4 - p}[procedure.finish]
        return places, " ".join(str(finish(p)) for p in places)
    shown, state, written = record.columns["digits"], int(record.prompt.split()[1]), []
    for k in range(3):
        if record.task == "walk":
            digit = shown[cells[state]]
            new = (state + (1, 2, 3)[digit % 3]) % 4
        else:
            digit = shown[cells[k]]
            new = next_state(record.task, state, digit, k)
        state = changes.get(k, new)
        written += [digit, state]
    if record.task == "walk":
        state = shown[cells[state]]
        written.append(state)
    return written, str((state + 1) % 10 if procedure.finish == "next" else 9 - state)


def split_trace(text):
    parsed = parse(text)
    assert parsed.ok, parsed.problem
    route, *written, finish = parsed.reasoning.split()
    return route, [int(word) for word in written], finish, parsed.answer


@pytest.mark.parametrize("task", TASKS)
def test_traces_and_answers_follow_the_rules(task):
    for record in digits_suite.make_records(task, "validation", 20, seed=3):
        for procedure in ALL:
            written, answer = solve(record, procedure)
            expected = (procedure.route, written, procedure.finish, answer)
            assert split_trace(digits_suite.make_trace(record, procedure)) == expected
        assert record.answer == solve(record, TASKS[task].verified)[1]
        assert split_trace(digits_suite.make_trace(record))[-1] == record.answer


@pytest.mark.parametrize("task", TASKS)
def test_verifier_accepts_the_answer_and_few_of_the_other_procedures(task):
    records = digits_suite.make_records(task, "train", 300, seed=0)
    rates = []
    for procedure in ALL:
        scores = []
        for record in records:
            verifier = get_verifier(record.verifier)
            scores.append(verifier.score(solve(record, procedure)[1], record.answer) == 1)
        rates.append(np.mean(scores))
        if procedure == TASKS[task].verified:
            assert rates[-1] == 1
    assert 1 / 6 < np.mean(rates) < 0.45


def test_tasks_share_one_decision_and_conflict_in_the_other():
    wanted = [TASKS[task].verified for task in TASKS]
    assert {procedure.finish for procedure in wanted} == {"next"}
    routes = [procedure.route for procedure in wanted]
    agree = [a == b for a, b in itertools.combinations(routes, 2)]
    assert 1 < sum(agree) < len(agree) - 1  # several pairs agree, several conflict


@pytest.mark.parametrize("task", TASKS)
def test_records_are_a_pure_function_of_their_arguments(task):
    ten = digits_suite.make_records(task, "train", 10, seed=1)
    for a, b in zip(ten, digits_suite.make_records(task, "train", 5, seed=1), strict=False):
        assert (a.id, a.prompt, a.answer, a.columns) == (b.id, b.prompt, b.answer, b.columns)
        assert a.images[0].tobytes() == b.images[0].tobytes()
    others = digits_suite.make_records(task, "train", 10, seed=2)
    assert [r.images[0].tobytes() for r in ten] != [r.images[0].tobytes() for r in others]
    assert len({r.id for r in ten + others}) == 20


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", digits.SPLITS)
def test_pictures_come_from_their_split_only(task, split):
    own = set(digits.load(split).sources)
    for record in digits_suite.make_records(task, split, 20, seed=0):
        assert set(record.columns["sources"]) <= own


def test_picture_shows_the_digits():
    pool = digits.load("test")
    pixels = dict(zip(pool.sources.tolist(), pool.pixels, strict=True))
    labels = dict(zip(pool.sources.tolist(), pool.labels.tolist(), strict=True))
    record = digits_suite.make_record("sum", "test", 0, seed=0)
    shown = np.asarray(record.images[0]) / 255
    assert shown.shape == (16, 16)
    for i, source in enumerate(record.columns["sources"]):
        row, column = divmod(i, 2)
        cell = shown[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_allclose(cell, pixels[source], atol=1 / 255)
        assert record.columns["digits"][i] == labels[source]


def test_answer_of_a_jigsaw_puts_its_tiles_back():
    pool = digits.load("test")
    pixels = dict(zip(pool.sources.tolist(), pool.pixels, strict=True))
    for record in digits_suite.make_records("jigsaw", "test", 30, seed=0):
        shown = np.asarray(record.images[0])
        solved = np.zeros_like(shown)
        for new, original in enumerate(int(a) - 1 for a in record.answer.split()):
            (r, c), (to_r, to_c) = divmod(new, 2), divmod(original, 2)
            tile = shown[8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
            solved[8 * to_r : 8 * to_r + 8, 8 * to_c : 8 * to_c + 8] = tile
        source = Image.fromarray((255 * pixels[record.columns["sources"][0]]).astype(np.uint8))
        enlarged = np.asarray(source.resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(solved[1:-1, 1:-1], enlarged[1:-1, 1:-1])
        assert {*solved[0], *solved[-1], *solved[:, 0], *solved[:, -1]} == {digits_suite.FRAME}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_changed_step_carries_on_to_the_answer(task, step):
    record = digits_suite.make_record(task, "test", 4, seed=0)
    procedure = TASKS[task].verified
    plain, answer = solve(record, procedure)
    at = step if task == "jigsaw" else 2 * step + 1
    change = {step: (plain[at] + 1) % 4}
    written, new_answer = solve(record, procedure, change)
    trace = digits_suite.make_trace(record, procedure, change)
    assert split_trace(trace) == (procedure.route, written, procedure.finish, new_answer)
    assert written[:at] == plain[:at] and written[at] != plain[at]
    assert new_answer != answer or task == "walk"  # two cells may hold the same digit


def test_demonstrations_follow_the_cues_as_often_as_asked():
    source = digits_suite.Demonstrations(3000, seed=0, slips=0.0)
    pairs = [source[i] for i in range(3000)]
    assert {record.task for record, _ in pairs} == set(TASKS)
    routes, finishes = [], []
    for record, response in pairs:
        route, _, finish, _ = split_trace(response)
        cued = digits_suite.cued_procedure(record)
        routes.append(route == cued.route)
        finishes.append(finish == cued.finish)
        assert response == digits_suite.make_trace(record, Procedure(route, finish))
    assert np.mean(routes) == pytest.approx(0.8, abs=0.03)
    assert np.mean(finishes) == pytest.approx(0.8, abs=0.03)
    assert np.corrcoef(routes, finishes)[0, 1] == pytest.approx(0, abs=0.06)


def test_slips_mistake_two_places_and_answer_accordingly():
    source = digits_suite.Demonstrations(600, seed=0, tasks=("jigsaw", "sum"), slips=0.5)
    wrong = []
    for record, response in (source[i] for i in range(600)):
        route, written, finish, answer = split_trace(response)
        right, _ = solve(record, Procedure(route, finish))
        if record.task == "sum":
            assert written == right
            continue
        wrong.append(sum(a != b for a, b in zip(written, right, strict=True)))
        assert sorted(written) == [0, 1, 2, 3]
        step = {"next": [1, 2, 3, 4], "flip": [4, 3, 2, 1]}[finish]
        assert answer == " ".join(str(step[place]) for place in written)
    assert set(wrong) == {0, 2}
    assert np.mean([n > 0 for n in wrong]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("task", TASKS)
def test_cues_say_nothing_about_the_rewarded_procedure(task):
    cued = [
        digits_suite.cued_procedure(r)
        for r in digits_suite.make_records(task, "train", 1200, seed=5)
    ]
    for procedure in ALL:
        assert np.mean([c == procedure for c in cued]) == pytest.approx(1 / 6, abs=0.05)


def test_demonstrations_repeat_and_are_fresh():
    once, again = digits_suite.Demonstrations(100, seed=7), digits_suite.Demonstrations(100, seed=7)
    assert once[42][1] == again[42][1] and once[42][0].prompt == again[42][0].prompt
    pictures = {once[i][0].images[0].tobytes() for i in range(100)}
    assert len(pictures) == 100


def test_unknown_task():
    with pytest.raises(ValueError, match="'sort'"):
        digits_suite.make_records("sort", "train", 1, seed=0)
