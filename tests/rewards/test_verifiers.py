"""Verifiers, and a test for each hole that public reward functions are known for."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdbcl_jax.rewards import boxes, edits
from rdbcl_jax.rewards.functions import FunctionFailed
from rdbcl_jax.rewards.verifiers import (
    VERIFIERS,
    Verifier,
    get_verifier,
    parse_number,
    register,
)

BOX = "[[0, 0, 10, 10]]"
IN_IMAGE = '{"size": [100, 50], "boxes": [[0, 0, 10, 10], [20, 20, 40, 40]]}'
BOTH = "[[0, 0, 10, 10], [20, 20, 40, 40]]"

# for each verifier: gold answers that parse, and gold answers that do not
GOLDS = {
    "exact": (["Paris", "7", "two words", "..."], ["", "  "]),
    "yes_no": (["yes", "No", "NO."], ["", "maybe", "yes or no"]),
    "choice": (["B", "(b)", "C."], ["", "BC", "7", "none of them"]),
    "number": (["7", "-1,234.5", "3/4", "50%"], ["", "seven", "nan", "inf", "1e999", "1/0", "."]),
    "sequence": (["3 1 2", "[red, blue]"], ["", "[]", ",;"]),
    "jigsaw": (["2 1", "[3, 1, 2, 4]"], ["", "1", "1 1 2", "0 1 2", "2 3", "a b", "1 2 4"]),
    "boxes": ([BOX, "[]", "[1, 2, 3, 4]", IN_IMAGE], ["", "gibberish", "[[3, 0, 1, 1]]", "[1, 2]"]),
    "math": ([r"\frac{1}{2}", "$x^2$", "7", "odd", "12:00", "$125$ miles"], ["", " ", "\u3164"]),
}


def score(verifier, answer, gold):
    return get_verifier(verifier).score(answer, gold)


def test_every_verifier_is_tested_here():
    assert set(GOLDS) <= set(VERIFIERS)


@pytest.mark.parametrize(("name", "gold"), [(n, g) for n in GOLDS for g in GOLDS[n][0]])
def test_the_gold_answer_itself_is_right(name, gold):
    get_verifier(name).prepare(gold)
    answer = BOTH if gold == IN_IMAGE else gold
    assert score(name, answer, gold) == 1.0


@pytest.mark.parametrize(("name", "gold"), [(n, g) for n in GOLDS for g in GOLDS[n][1]])
def test_hole_an_unparsable_gold_scores_1(name, gold):
    """It is an error instead, when a record is loaded and again if it is ever scored."""
    with pytest.raises(ValueError):
        get_verifier(name).prepare(gold)
    with pytest.raises(ValueError):
        score(name, gold, gold)


@pytest.mark.parametrize("name", GOLDS)
@pytest.mark.parametrize(
    "empty", ["", " \n", "\u200b\u2060", "\u00a0", "\u3164", "\u2800", "\ufe0f"]
)
def test_hole_an_empty_prediction_counts_as_correct(name, empty):
    assert all(score(name, empty, gold) == 0.0 for gold in GOLDS[name][0])


def test_hole_i_do_not_know_scores_1_for_gold_no_by_substring():
    assert score("yes_no", "I do not know", "no") == 0
    assert score("exact", "I do not know", "no") == 0
    assert score("exact", "17", "7") == score("exact", "7", "17") == 0
    assert score("yes_no", "yes, no", "no") == score("yes_no", "yes no", "yes") == 0


def test_hole_gibberish_scores_1_when_the_gold_box_list_is_empty():
    assert score("boxes", "[]", "[]") == 1
    for answer in ("gibberish", "{}", "none", "[[]]", "null", "[0]", BOX):
        assert score("boxes", answer, "[]") == 0


def test_hole_1_1_1_1_earns_partial_credit_as_a_permutation():
    for answer in ("1 1 1 1", "2 1 3", "2 1 3 4 5", "0 1 2 3", "2 1 3 x", "2 1 3 4 and 1 2 3 4"):
        assert score("jigsaw", answer, "2 1 3 4") == 0


def test_hole_many_answers_at_once():
    """Answers that list every possibility contain the right one, and are wrong."""
    assert score("exact", "red blue green", "red") == 0
    assert score("choice", "A B C D", "B") == 0
    assert score("choice", "B) cat or C) dog", "B") == 0
    assert score("number", "1 2 3", "3") == score("number", "1, 2, 3", "3") == 0
    assert score("math", "1, 2, 3", "3") == score("math", "3 or 4", "4") == 0
    assert score("math", r"\boxed{1}\boxed{2}", "2") == score("math", "$1$ $2$", "2") == 0
    many = [[x, 0, x + 10, 10] for x in range(0, 90, 10)]
    assert score("boxes", str(many), BOX) == pytest.approx(2 / 10)


def test_hole_boxes_without_bounds():
    for answer in (
        "[[0, 0, NaN, 10]]",
        "[[0, 0, Infinity, 10]]",
        "[[10, 10, 0, 0]]",
        "[[0, 0, 0, 10]]",
        "[[-1, 0, 10, 10]]",
        "[[0, 0, 101, 10]]",
        "[[0, 0, 10, 51]]",
        "[[0, 0, 10, true]]",
        "[[0, 0, 1" + "0" * 400 + ", 10]]",
    ):
        assert score("boxes", answer, IN_IMAGE) == 0
    assert score("boxes", str([[0, 0, 10, 10]] * (boxes.MAX_BOXES + 1)), BOX) == 0
    assert score("boxes", "[" * 100_000, BOX) == 0


def test_hole_math_verify_fails_in_threads():
    results = []

    def work():
        results.append(score("math", "0.5", r"\frac{1}{2}"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [1.0]


def test_many_threads_ask_at_once():
    """One lock guards the digits of evaluation; verdicts do not depend on who asks."""
    wrong = []

    def work(k):
        for n in range(20):
            right = score("math", rf"\frac{{{n}}}{{7}}+\sqrt{{{k}}}", rf"\sqrt{{{k}}}+{n}/7")
            if right != 1 or score("math", rf"\sqrt{{{n}}}", rf"\sqrt{{{n + k + 1}}}") != 0:
                wrong.append((k, n))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "answer", "gold", "expected"),
    [
        ("exact", " PARIS.\n", "Paris", 1),
        ("exact", "new  york", "New York", 1),
        ("exact", "newyork", "New York", 0),
        ("exact", "７", "7", 1),
        ("yes_no", "Yes.", "yes", 1),
        ("yes_no", "no", "yes", 0),
        ("choice", "(b)", "B", 1),
        ("choice", "B. a dog", "B", 1),
        ("choice", "(B) a dog", "B", 1),
        ("choice", "A dog", "A", 0),
        ("choice", "BA", "B", 0),
        ("number", "1,234.50", "1234.5", 1),
        ("number", "$5", "5.0", 1),
        ("number", "−2", "-2", 1),
        ("number", "5e2", "500", 1),
        ("number", "0.75", "3/4", 1),
        ("number", "12,34", "1234", 0),
        ("number", "12,34", "12.34", 1),
        ("number", "104", "100", 0),
        ("number:0.05", "104", "100", 1),
        ("number:0.05", "106", "100", 0),
        ("sequence", "3, 1, 2", "3 1 2", 1),
        ("sequence", "['Red', 'blue']", "red, blue", 1),
        ("sequence", "3 1", "3 1 2", 2 / 3),
        ("sequence", "3 1 2 2 2 2", "3 1 2", 1 / 2),
        ("sequence", "1 3 2", "3 1 2", 1 / 3),
        ("jigsaw", "[2, 1, 4, 3]", "2 1 3 4", 1 / 2),
        ("jigsaw", "2, 1\n3, 4", "2 1 3 4", 1),
        ("boxes", "[0, 0, 10, 10]", BOX, 1),
        ("boxes", '```json\n[{"bbox_2d": [0, 0, 10, 9], "label": "cat"}]\n```', BOX, 1),
        ("boxes", "[[0, 0, 10, 4]]", BOX, 0),
        ("boxes:0.3", "[[0, 0, 10, 4]]", BOX, 1),
        ("boxes", BOX, IN_IMAGE, 2 / 3),
        ("boxes", "[[20, 20, 40, 40], [0, 0, 10, 10]]", IN_IMAGE, 1),
        ("boxes", "[[0, 0, 10, 10], [0, 0, 10, 10]]", IN_IMAGE, 1 / 2),
        ("math", "0.5", r"\frac{1}{2}", 1),
        ("math", "sqrt(8)", r"2\sqrt{2}", 1),
        ("math", "2*pi", r"$2\pi$", 1),
        ("math", r"\boxed{x = 5}", "5", 1),
        ("math", "1 + x", "x + 1", 1),
        ("math", "x + 2", "x + 1", 0),
        ("math", "12 cm", r"12\text{ cm}", 1),
        ("math", "the answer is 7", "7", 1),
        ("number", "Therefore, the answer is 5", "5", 1),
        ("number", "Thus the answer is 5", "5", 1),
        ("number", "Therefore, not 5", "5", 0),
        ("choice", "Therefore, the correct answer is A.", "A", 1),
        ("yes_no", "So, the answer is yes", "yes", 1),
        ("count", "So, the answer is 3", "3", 1),
        ("count", "Hence, the count is 3", "3", 1),
        ("math", "the answer is not 7", "7", 0),
        ("math:0.01", "0.333", "1/3", 1),
        ("math:0.01", "0.34", "1/3", 0),
        ("number", "1234568", "1234567", 0),
        ("number:0.05", "1234568", "1234567", 1),
        ("number", "1.6e-19", "9.1e-31", 0),
        ("number", "0", "1e-13", 0),
    ],
)
def test_scores(name, answer, gold, expected):
    assert score(name, answer, gold) == pytest.approx(expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.just("bbox_2d"), inner),
).map(lambda value: repr(value).replace("'", '"').replace("nan", "NaN").replace("inf", "Infinity"))


@given(JSON)
def test_no_json_raises_and_scores_stay_in_0_1(answer):
    for gold in GOLDS["boxes"][0]:
        assert 0.0 <= score("boxes", answer, gold) <= 1.0


@given(st.permutations(range(1, 7)), st.permutations(range(1, 7)))
def test_jigsaw_scores_the_fraction_of_pieces_in_place(answer, gold):
    expected = np.mean(np.array(answer) == np.array(gold))
    assert score("jigsaw", " ".join(map(str, answer)), str(gold)) == pytest.approx(expected)


SIDES = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2)
BOXES = st.lists(SIDES.map(lambda s: [s[0], s[1], s[0] + s[2], s[1] + s[3]]), max_size=5)


@given(BOXES, BOXES)
def test_box_scores_are_symmetric_and_extra_boxes_cost(first, second):
    value = score("boxes", str(first), str(second))
    assert value == score("boxes", str(second), str(first))
    assert score("boxes", str(second), str(second)) == 1.0
    extra = [[900 + i, 900, 901 + i, 901] for i in range(3)]
    assert score("boxes", str(first + extra), str(second)) <= value
    assert not (value == 1.0 and len(first) != len(second))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_round_trip(value):
    assert parse_number(repr(value)) == value


@pytest.mark.parametrize(
    "name",
    [
        *("nope", "exact:1", "number:", "number:x", "number:-1", "", "numbr:0.05", "no.such:thing"),
        *("boxes:0", "boxes:1.1", "number:1", "math:2"),
    ],
)
def test_unknown_names_and_parameters(name):
    with pytest.raises(ValueError, match=r"verifier"):
        get_verifier(name)


def test_of_several_gold_answers_any_is_right():
    assert score("exact", "Three", ["3", "three"]) == score("math", "0.5", ["x", "1/2"]) == 1
    assert score("number", "7", ["lots", "7"]) == 1 and score("number", "lots", ["lots", "7"]) == 0
    assert score("sequence", "3 1 2", ["1 2 3", "3 1 4"]) == 2 / 3  # the best of them
    assert score("exact", " ", ["3", "three"]) == 0
    with pytest.raises(ValueError, match="found '24 apples'; verifier count reads a number of"):
        score("number", "24", "24 apples")
    for golds in ([], ["lots", "few"]):
        with pytest.raises(ValueError, match=r"gold answer|found 'lots'"):
            score("number", "7", golds)


@pytest.mark.parametrize("others", [9, 3])
def test_vqa_accuracy_is_the_mean_over_annotators_left_out(others):
    for count in range(others + 2):
        golds = ["cat"] * count + [f"dog {n}" for n in range(others + 1 - count)]
        left_out = [
            min(1, (golds[:k] + golds[k + 1 :]).count("cat") / 3) for k in range(others + 1)
        ]
        assert score("vqa", "The cat.", golds) == pytest.approx(np.mean(left_out))


def test_vqa_answers_are_compared_as_the_published_evaluation_does():
    """Its verdicts on pairs that its normalisation makes the same, or not."""
    same = [
        ("dont", "don't"),
        ("two-way", "2 way"),
        ("1,000", "1000"),
        ("a.m.", "am"),
        ("none", "0"),
    ]
    same += [("stop/go", "stop go"), ("stop /go", "stop go"), ("he'dve", "he'd've"), ("-5", "5")]
    other = [("1.5", "15"), ("don t", "don't"), ("eleven", "11"), ("wed", "we'd"), ("cats", "cat")]
    for first, second in same + other:
        assert score("vqa", first, [second] * 10) == ((first, second) in same), (first, second)
    for nothing in ("the", "!", "an", "?!", "(@"):  # there each of these is any other
        assert score("vqa", nothing, ["a"] * 5 + ["-"] * 5) == 0 == score("vqa", "", [nothing] * 9)
        assert score("vqa", nothing, [nothing] * 10) == 1


def test_anls_is_the_share_of_a_text_that_is_right():
    """Expectations of the published evaluation: 1 − distance / length of the longer, 0 below ½."""
    expected = [("coca", "coke", 0.5), ("clay", "coke", 0), ("kitten", "sitting", 1 - 3 / 7)]
    expected += [("1998", "1999", 0.75), ("a b", "A  B.", 1), ("cafe", "café", 0.75)]
    for answer, gold, value in expected:
        assert score("anls", answer, gold) == pytest.approx(value), (answer, gold)
    assert score("anls:0", "clay", "coke") == 0.25 and score("anls:1", "1998", "1999") == 0
    assert score("anls", "kitten", ["dog", "sitten", "sitting"]) == pytest.approx(5 / 6)
    assert get_verifier("anls").graded


@given(st.text("ab", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_that_of_the_table(first, second):
    table = np.add.outer(np.arange(len(first) + 1), np.arange(len(second) + 1))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            steps = (table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a != b))
            table[i + 1, j + 1] = min(steps)
    assert edits.distance(first, second) == table[-1, -1]


def test_a_verifier_of_ones_own():
    def prepare(gold):
        return int(gold)

    def close(answer, gold):
        return 1 / (1 + abs(int(answer) - gold)) if answer.isdecimal() else 0.0

    register("close", prepare, close)
    try:
        assert score("close", "8", "7") == 0.5
        with pytest.raises(ValueError, match="letters"):
            register("not a name", prepare, close)
    finally:
        del VERIFIERS["close"]


def within(answer, gold, tolerance=1.0):
    """A verifier of one's own as a function: right where it is near enough."""
    return float(abs(float(answer) - float(gold)) <= tolerance)


WITHIN = Verifier("within", float, within, 2.0)
EAGER = Verifier("eager", str, lambda answer, gold: 2.0)
ODD = {"2": 2.0, "nan": float("nan"), "none": None, "word": "good", "minus": -0.1}


def odd(answer, gold):
    """Returns what no verifier should."""
    return ODD[answer]


def test_a_verifier_of_ones_own_is_named_by_where_it_is():
    here = "tests.rewards.test_verifiers"
    assert score(f"{here}:within", "8", "7") == 1.0 and score(f"{here}:within", "9", "7") == 0.0
    assert score(f"{here}:within:2.5", "9", "7") == 1.0
    assert score(f"{here}:WITHIN", "9", "7") == 1.0
    assert score(f"{here}:WITHIN:0.5", "8", "7") == 0.0
    assert score(f"{here}:within", " ", "7") == 0.0
    with pytest.raises(ValueError, match="gold answer is empty"):
        get_verifier(f"{here}:within").prepare(" ")
    with pytest.raises(ValueError, match="could not convert"):
        get_verifier(f"{here}:WITHIN").prepare("seven")
    with pytest.raises(ValueError, match="expected a number in"):
        score(f"{here}:EAGER", "8", "7")
    for name in (f"{here}:BOX", f"{here}:nothing", f"{here}:within:x", f"{here}:EAGER:1"):
        with pytest.raises(ValueError, match="verifier"):
            get_verifier(name)


@pytest.mark.parametrize("answer", ODD)
def test_a_verifier_of_ones_own_that_returns_something_wrong(answer):
    with pytest.raises(
        ValueError, match=r"verifier '.*odd' returned .* expected a number in \[0, 1\]"
    ):
        score("tests.rewards.test_verifiers:odd", answer, "7")


def test_a_verifier_of_ones_own_that_raises():
    with pytest.raises(FunctionFailed, match=r"verifier '.*odd' raised KeyError on the answer 'x'"):
        score("tests.rewards.test_verifiers:odd", "x", "7")
