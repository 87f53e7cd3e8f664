"""The response format, and the holes that format rewards are known for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdbcl_jax.rewards.response_format import TAGS, Parsed, parse

GOOD = "<think>one and one</think><answer>2</answer>"


def test_a_well_formed_response():
    assert parse(GOOD) == Parsed("one and one", "2", True, None)


def test_white_space_is_allowed_around_every_block():
    text = "\n <think>\none\n and one </think>\n\n<answer> 2 \n</answer>\n"
    assert parse(text) == Parsed("one\n and one", "2", True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no <think>"),
        ("2", "no <think>"),
        ("<answer>2</answer>", "no <think>"),
        ("<think>a", "no </think>"),
        ("<think>a</think>2", "no <answer>"),
        ("<think>a</think><answer>2", "no </answer>"),
        ("<think>a</think><think>b</think><answer>2</answer>", "more than one <think>"),
        ("<answer>2</answer><think>a</think>", "tags in the wrong order"),
        ("</think>a<think><answer>2</answer>", "tags in the wrong order"),
        ("<think>a<answer>2</answer></think>", "tags in the wrong order"),
        ("Sure! " + GOOD, "text before <think>"),
        ("<think>a</think> so <answer>2</answer>", "text between </think> and <answer>"),
        (GOOD + " or 3", "text after </answer>"),
        (GOOD.replace("<think>", "<THINK>"), "no <think>"),
    ],
)
def test_each_problem_is_named(text, problem):
    assert parse(text) == Parsed("", "", False, problem)


@pytest.mark.parametrize(
    "blank",
    ["", " \n\t", "\u200b", "\u00a0\ufeff", "\u3164\uffa0", "\u2800", "\u0301\ufe0f", "\ue000"],
)
def test_hole_empty_think_and_answer_blocks_pass_the_format(blank):
    assert parse(f"<think>{blank}</think><answer>2</answer>").problem == "nothing inside <think>"
    assert parse(f"<think>a</think><answer>{blank}</answer>").problem == "nothing inside <answer>"


def test_blank_looking_characters_round_the_blocks_are_no_text():
    assert parse(f"\u200b{GOOD}\u3164\u2060").ok
    assert parse(f"\u200b.{GOOD}").problem == "text before <think>"


def test_hole_two_answer_blocks_pass_the_format():
    assert parse(GOOD + "<answer>3</answer>").problem == "more than one <answer>"
    assert not parse("<think>a</think><answer>2</answer><answer>3</answer>").ok
    assert not parse("<think>is it <answer>3</answer>?</think><answer>2</answer>").ok


PIECES = st.lists(st.sampled_from([*TAGS, "a", " ", "2\n", "<", "think>"]), max_size=12)


@given(PIECES.map("".join) | st.text())
def test_never_raises_and_ok_means_the_format(text):
    parsed = parse(text)
    assert parsed.ok == (parsed.problem is None) == bool(parsed.answer) == bool(parsed.reasoning)
    if parsed.ok:
        rebuilt = f"<think>{parsed.reasoning}</think><answer>{parsed.answer}</answer>"
        assert "".join(text.split()) == "".join(rebuilt.split())
