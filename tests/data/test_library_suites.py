"""Tasks that libraries bring: easy-vqa's pictures, reasoning-gym's puzzles."""

import dataclasses
import sys

import pytest

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.records import load_images
from rdbcl_jax.data.suites import find_task
from rdbcl_jax.data.tasks import load_sequence, read_source
from rdbcl_jax.rewards import reasoning_gym
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.rewards.scoring import score
from rdbcl_jax.rewards.verifiers import get_verifier


def test_easy_vqa():
    tasks = ("easy_vqa:shape", "easy_vqa:yes_no")
    config = RunConfig.of({"sequence": tasks}).changed({"data.train_count": 100_000})
    shape, yes_no = load_sequence(config)
    assert (shape.name, len(shape.validation), len(shape.test)) == ("shape", 256, 512)
    assert {record.answer for record in shape.train} == {"circle", "rectangle", "triangle"}
    assert {record.answer for record in yes_no.test} == {"yes", "no"}
    images = [
        {str(record.images[0]) for record in part} for part in (shape.train, shape.validation)
    ]
    assert not images[0] & images[1] and all(len(found) > 200 for found in images)
    assert len(shape.train) == 4492 and len({record.id for record in shape.train}) == 4492
    assert load_images(shape.test[0])[0].size == (64, 64)
    again = read_source("easy_vqa:shape", config, split="validation", task="any")
    assert again == shape.validation
    responses = [in_format("seen", record.answer) for record in yes_no.test[:3]]
    assert score(yes_no.test[:3], responses).accuracy.tolist() == [1, 1, 1]


def test_reasoning_gym_scores_with_the_scorer_of_its_data_set():
    config = RunConfig.of({"sequence": ("reasoning_gym:countdown",)})
    config = config.changed({"data.train_count": 3, "data.validation_count": 3})
    (task,) = load_sequence(config.changed({"data.test_count": 3}))
    assert task.name == "countdown" and task.train[0].prompt != task.validation[0].prompt
    first = task.train[0]
    other = first.answer.replace(" + ", "+")
    judged = get_verifier(first.verifier)
    assert judged.score(first.answer, first.answers) == judged.score(other, first.answers) == 1
    assert 0 < judged.score("1 + 1", first.answers) < 0.1
    answers = [in_format(".", record.answer) for record in task.train]
    assert score(task.train, answers).accuracy.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="has no task 'countdowns'"):
        find_task("reasoning_gym:countdowns")


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "(lambda: 24)()",
        "9**9**9",
        "9**(9**9)",
        "9**999",
        "2**" * 30 + "2",
        "1" * 40,
        "x.__class__",
        "factorial(9999)",
    ],
)
def test_what_a_parser_would_evaluate_is_plain_arithmetic(answer):
    assert not reasoning_gym._safe(answer, "countdown")
    puzzle = reasoning_gym.Puzzle("countdown", 0, 3, 0)
    assert reasoning_gym.compare(answer, puzzle) == 0


def test_plain_arithmetic_is_handed_on():
    for answer in ("(1 + 2)*3 - 4/5", "x**2/2 - 3*x**(1/2) + sin(2*x) + C", "-4*y**10 + 1.5"):
        assert reasoning_gym._safe(answer, "simple_integration")


def test_scorers_evaluate_literals_alone(tmp_path):
    """They call `eval`, and answers come from a policy."""
    puzzle = reasoning_gym.Puzzle("string_insertion", 0, 2, 1)
    gold = reasoning_gym.entry(puzzle)["answer"]
    assert reasoning_gym.compare(gold, puzzle) == 1
    assert reasoning_gym.compare(str([*gold]), puzzle) == 0.1
    file = tmp_path / "made"
    assert reasoning_gym.compare(f"[open({str(file)!r}, 'w').close() or {gold!r}]", puzzle) == 0
    assert not file.exists()


def test_a_gold_answer_that_names_no_puzzle():
    for golds in (["7"], [], ['{"dataset": "countdown"}']):
        with pytest.raises(ValueError, match="expected a puzzle as the suite reasoning_gym names"):
            reasoning_gym.prepare(golds)


def test_without_the_libraries(monkeypatch):
    config = RunConfig.of({"sequence": ("easy_vqa:shape",)})
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ImportError, match=r"pip install 'rdbcl_jax\[easy_vqa\]'"):
        load_sequence(config)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    config = dataclasses.replace(config, sequence=("reasoning_gym:countdown",))
    with pytest.raises(ImportError, match=r"pip install 'rdbcl_jax\[reasoning_gym\]'"):
        load_sequence(config)
