"""What is rehearsed of earlier tasks: their records, or their questions about new pictures."""

import dataclasses
import pathlib
import types

import jax
import numpy as np
import pytest

from rdbcl_jax.data.records import Record
from rdbcl_jax.evaluation import evaluate
from rdbcl_jax.lab.study import load_config
from rdbcl_jax.policy import load_policy
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.sharding import RowShard
from rdbcl_jax.training import rehearsal, run
from rdbcl_jax.training.rehearsal import Asked

TESTBED = pathlib.Path(__file__).parents[2] / "configs" / "studies" / "testbed.py"


def asked_about(images: int, new: list[Record]) -> Record:
    pictures, columns = tuple("abc"[:images]), {"hint": "h"}
    row = {**columns, "answer": "3", "question": "how many?"}
    old = Record("q", "old", "how many?", pictures, "3", "exact", columns, row=row)
    return Asked([old], new, [1, 0])[0]


def with_images(*names: str) -> Record:
    return Record("n", "new", "what?", names, "red", "exact")


def test_an_old_question_is_asked_about_new_pictures_and_nothing_else_of_it_is_kept():
    new = [with_images("x", "y"), with_images("z")]
    found = asked_about(1, new)
    assert (found.prompt, found.task, found.verifier) == ("how many?", "old", "exact")
    assert found.images == ("z",) and found.answer == "" and found.columns == found.row == {}
    assert found.id != "q"
    assert asked_about(3, new).images == ("z", "x", "y")  # of as many records as it takes
    assert asked_about(0, new).images == ()


def test_pictures_are_needed_for_questions_about_pictures():
    with pytest.raises(ValueError, match=r"'q' .* 2 pictures, and 2 records .* have 0"):
        asked_about(2, [with_images()] * 2)
    # the same picture is not two of them
    with pytest.raises(ValueError, match="2 records of the new task have 1"):
        asked_about(2, [with_images("x"), with_images()])


class Reader:
    """Of an encoder what old questions are read with; batches hold 12 characters of a prompt."""

    def __init__(self):
        self.seen = []

    def read(self, records):
        self.seen += [record.id for record in records]
        return records

    def batch(self, records, ids=()):
        if any(len(record.prompt) > 12 for record in records):
            raise ValueError
        return [record.prompt for record in records], [*ids]


def test_a_question_is_read_once_and_left_out_alone():
    """Where there are no pictures for it, or where it is too long for a batch."""
    new = dataclasses.replace(with_images(), id="new")
    old = [dataclasses.replace(new, prompt=f"old {n}", id=str(n)) for n in range(6)]
    old[1] = dataclasses.replace(old[1], images=("a", "b"))
    old[3] = dataclasses.replace(old[3], prompt="a question of many words")
    policy = types.SimpleNamespace(encoder=Reader(), rows=RowShard())
    fitting = []
    found = rehearsal._batches(policy, Asked(old, [with_images("x")], [0]), 3, fitting)
    assert [(batch, valid.tolist()) for batch, valid in found] == [
        ((["old 0", "old 2", "old 4"], [0, 1, 2]), [True] * 3),
        ((["old 5", "old 5", "old 5"], [3, 3, 3]), [True, False, False]),
    ]
    assert [record.prompt for record in fitting] == ["old 0", "old 2", "old 4", "old 5"]
    assert policy.encoder.seen == [f"{n}, asked again" for n in (0, 2, 3, 4, 5)]


def test_what_cannot_be_a_gold_answer_is_not_rewarded():
    number = dataclasses.replace(with_images(), verifier="number")
    assert rehearsal._could_be_gold(number, "12") and not rehearsal._could_be_gold(number, "red")
    # a place as the model says it is not in the picture's own size
    assert not rehearsal._could_be_gold(
        dataclasses.replace(number, verifier="grounding"), "1 2 3 4"
    )


@pytest.mark.slow
def test_the_policy_from_before_the_task_answers_old_questions(tmp_path, monkeypatch):
    config = load_config(TESTBED)
    config.update({"method": "pseudo_rehearsal", "sequence": config.sequence[:2]})
    config.replay.per_task = 32
    config.base.size = {"depth": 1, "vision_depth": 1, "width": 32, "mlp_width": 48}
    config.base.steps, config.base.batch_size = 120, 32  # enough for the format
    config.data.update({"train_count": 32, "validation_count": 8, "test_count": 8})
    config.training.steps, config.rollout.prompts = 2, 8
    config.evaluation.batch_size = 32
    seen, said, learned = [], [], []
    learn_task = run.learn_task

    def learn(learner, *given, **options):
        found = learn_task(learner, *given, **options)
        learned.append(jax.device_get(found[0].train.params))
        return found

    def spy(learner, tasks, k, previous, say):
        found = rehearsal.old_prompts(learner, tasks, k, previous, said.append)
        again = rehearsal.old_prompts(learner, tasks, k, previous, say)
        assert [[*part] for part in found] == [[*part] for part in again]  # as after a resume
        seen.append((found, jax.device_get(previous), learner, tasks))
        return found

    monkeypatch.setattr(run, "old_prompts", spy)
    monkeypatch.setattr(run, "learn_task", learn)
    assert run.train(config, tmp_path).status == "done"
    (nothing, *_), ([old], previous, learner, tasks) = seen
    assert nothing == [] and 0 < len(old) <= 32
    at_base = learner.config.changed({"model.path": str(tmp_path / "base")})
    _, base = load_policy(at_base, learner.policy.mesh)
    for a, b, left in zip(*map(jax.tree.leaves, (base, learned[0], previous)), strict=True):
        np.testing.assert_allclose(left, 0.2 * a + 0.8 * b, rtol=1e-5, atol=1e-7)
    assert len(said) == (len(old) < 32) and all(f"rehearses {len(old)} of 32" in s for s in said)
    pictures = {record.images[0].tobytes() for record in tasks[1].train}
    for record in old:
        assert record.task == "add" and record.images[0].tobytes() in pictures
        assert record.prompt in {kept.prompt for kept in tasks[0].train}
    # the answers are those of the policy: asked again it is right by them
    assert evaluate(learner.policy, previous, [old], learner.config).accuracy == [1.0]
    rows = read_samples(tmp_path).to_pylist()
    rehearsed = {row["record_id"] for row in rows if row["record_id"].endswith("asked again")}
    assert rehearsed <= {record.id for record in old}
    assert np.mean([row["record_id"] in rehearsed for row in rows if row["step"] >= 2]) == 0.25
