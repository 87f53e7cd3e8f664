"""DyME's local checker."""

import pytest

from rdbcl_jax.rewards.scoring import RewardConfig, score
from rdbcl_jax.rewards.thinking import content_words, hint_f1
from tests.rewards.test_scoring import Record


def response(reasoning):
    return f"<think>{reasoning}</think><answer>3</answer>"


@pytest.mark.parametrize(
    "reasoning,hint,expected",
    [
        ("The bars are rising.", "a rising bar", 1.0),  # bar, ris; function words do not count
        ("two cats", "three cats and two dogs", 2 * 2 / (2 + 4)),
        ("sum of 12 and 3.5", "12 plus 3.5", 2 * 2 / (3 + 3)),
        ("nothing shared", "other words", 0.0),
        ("the of and", "bars", 0.0),
    ],
)
def test_f1_of_content_words(reasoning, hint, expected):
    (found,) = hint_f1(completions=[response(reasoning)], hint=[hint], prompts=["?"])
    assert found == pytest.approx(expected)


def test_repeating_the_hint_does_not_pay():
    once, often = hint_f1(
        completions=[response("red bar"), response("red bar " * 5)], hint=["red bar"] * 2
    )
    assert once == 1.0 and often < 0.4


def test_no_hint_does_not_apply_and_no_format_is_nothing():
    assert hint_f1(completions=[response("a b"), "red bar"], hint=[None, "red bar"]) == [None, 0.0]


def test_stems():
    assert content_words("stories, storied; moved moves moving") == {"story": 2, "mov": 3}


def test_as_a_component_of_the_reward():
    config = RewardConfig(
        weights={"accuracy": 1.0, "thinking": 1.0},
        functions={"thinking": "rdbcl_jax.rewards.thinking:hint_f1"},
    )
    record = Record("r", "t", "?", (), "3", "exact", {"hint": "red bar"})
    scores = score([record], [response("red")], config)
    assert scores.total[0] == pytest.approx(1 + 2 / 3)
