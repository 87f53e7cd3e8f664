"""Where verifiers stop reading: the last text that is read, and the first that is not."""

import numpy as np
import pytest

from rdbcl_jax.rewards import boxes, numerals, words
from rdbcl_jax.rewards.numerals import quantity, unit_of
from rdbcl_jax.rewards.statements import LONGEST, MOST_ITEMS, Words, read
from rdbcl_jax.rewards.text import closing_brace, seen, unwrapped, visible
from rdbcl_jax.rewards.verifiers import get_verifier, parse_number


def right(name, answer, gold):
    return get_verifier(name).score(answer, gold) == 1.0


@pytest.mark.parametrize(
    ("name", "gold", "start"), [("yes_no", "yes", "Yes. "), ("choice", "A", "A. ")]
)
def test_reasons_and_options_of_any_length_up_to_a_limit(name, gold, start):
    longest = start + "a" * (words.LONGEST - len(start))
    assert right(name, longest, gold)
    assert not right(name, longest + "a", gold)


def test_every_letter_is_an_option():
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        assert right("choice", letter.lower(), letter) and right("choice", f"({letter})", letter)
        assert not right("choice", letter, chr((ord(letter) - 64) % 26 + 65))


def test_jigsaws_of_many_pieces():
    most = " ".join(map(str, range(1, words.MOST_PIECES + 1)))
    assert right("jigsaw", most, most.replace(" ", ", "))
    with pytest.raises(ValueError, match="permutation"):
        get_verifier("jigsaw").prepare(f"{most} {words.MOST_PIECES + 1}")


def test_boxes_in_number_and_size():
    row = [[x, 0, x + 1, 1] for x in range(boxes.MAX_BOXES + 1)]
    assert right("boxes", str(row[:-1]), str(row[:-1]))
    with pytest.raises(ValueError, match="at most 100 boxes, found 101"):
        get_verifier("boxes").prepare(str(row))
    for box, fine in (([0, 0, 999999, 2], True), ([0, 0, 1e6, 2], False), ([0, 0, 1e-6, 1], True)):
        assert right("boxes", str([box]), "[[0, 0, 999999, 2]]") == (box[2] == 999999)
        if not fine:
            with pytest.raises(ValueError, match="finite number of pixels"):
                get_verifier("boxes").prepare(str([box]))
    with pytest.raises(ValueError, match="expected 0 <= x1"):
        get_verifier("boxes").prepare("[[0, 0, 9e-7, 1]]")
    np.testing.assert_allclose(
        boxes.iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 1, 3, 3], [5, 5, 6, 6]])),
        [[1 / 7, 0]],
    )


def test_numerals_of_many_digits():
    longest = "0" * (numerals.LONGEST - 1) + "3"
    assert quantity(longest).value == 3 and quantity("0" + longest) is None
    thousands = "-100" + ",000" * 15
    assert len(thousands) == numerals.LONGEST
    assert right("exact", thousands, thousands.replace(",", ""))
    assert quantity("1e400").value == 10**400 and quantity("1e401") is None
    assert quantity("1e-400").value * 10**400 == 1 and quantity("1e-401") is None


def test_how_precisely_a_numeral_is_written():
    written = {
        "2.50": (2, 3),
        "0.05": (2, 1),
        "3": (None, 0),
        "1,000.99": (2, 6),
        "1.6e-19": (20, 2),
    }
    for text, (places, figures) in written.items():
        found = quantity(text)
        assert (found.places, found.figures) == (places, figures), text
    assert quantity("3/4").places is None and quantity("12 e2") is None


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        *(("cm", "cm"), ("Centimetres", "cm"), ("m", "m"), ("m²", "m2"), ("m^3", "m3")),
        *(("square meters", "m2"), ("sq. ft", "ft2"), ("cubic feet", "ft3"), ("m squared", "m2")),
        *(("km/h", "km/h"), ("miles per hour", "mi/h"), ("kg·m", "kg·m"), ("° C", "°c")),
        *(("no", None), ("million", None), ("cm or m", None), ("", None), ("squares", None)),
    ],
)
def test_units(text, unit):
    assert unit_of(text) == unit


def test_formulas_of_many_characters_and_items():
    longest = "1+" * ((LONGEST - 2) // 2) + "10"
    assert not isinstance(read(longest)[0], Words)
    assert isinstance(read("0" + longest)[0], Words)
    items = ",".join(f"x_{{{n}}}" for n in range(MOST_ITEMS))
    assert len(read(items)[0].items) == MOST_ITEMS
    assert isinstance(read(items + ",y")[0], Words)


def test_what_is_seen():
    assert seen("Ａ\u200b\u3164b\x00\u00ad\tc\ue000") == "A b c"
    assert seen("ｱ x²") == "ア x²" and seen("e\u0301") == "é"
    assert visible("²") and visible("!") and visible("+")
    assert not any(map(visible, ["", " ", "\u0301", "\u2800", "\u3164", "\ue000", "\u200d"]))


def test_what_is_unwrapped():
    nested = "**" + "$" + r"\boxed{\text{`x`}}" + "$" + "**."
    assert unwrapped(nested) == "x"
    assert unwrapped("**a** and **b**") == "**a** and **b**"
    assert unwrapped(r"\boxed{1} or {2}") == r"\boxed{1} or {2}"
    assert unwrapped("...") == "..." and unwrapped("x.") == "x" and unwrapped("**") == "**"
    assert unwrapped("*" + "a" * 4094 + "*") == "a" * 4094
    assert unwrapped("*" + "a" * 4095 + "*") == "*" + "a" * 4095 + "*"
    assert [closing_brace(text, 0) for text in ("{a{b}}c", r"{\}}", "{a", "{}")] == [5, 3, -1, 1]
    assert closing_brace("x{y}", 1) == 3


def test_numbers_beyond_those_of_the_machine_are_no_numbers():
    assert parse_number("1e400") is None and parse_number("1e308") == 1e308
    with pytest.raises(ValueError, match="expected a finite number, found '1e400'"):
        get_verifier("number").prepare("1e400")


def test_what_one_pair_of_brackets_holds():
    assert right("math", "(1, 2)", "(1,2)") and not right("math", "(1,2)", "[1,2]")
    assert read("(1,2)(3,4)") != read("(1,2)") and not right("math", "(1,2)(3,4)", "(1,4)")
    assert right("math", "(1)(2)", "2") and right("math", "(x+1)(x-1)", "x^2-1")


def test_the_left_of_an_equation_may_name_what_is_asked():
    for name in ("x", "AB", "f(x)", "f(x,y)", "F(x)", "x_{1}"):
        assert right("math", f"{name} = 3", "3"), name
    # the argument says nothing about the value; another function does
    assert right("math", "f(t) = 3", "f(x) = 3") and not right("math", "g(x) = 3", "f(x) = 3")
    for claim in ("f(2) = 3", "not = 3"):
        assert not right("math", claim, "3"), claim
