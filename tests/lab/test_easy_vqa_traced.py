"""Everything is recomputed here from the questions and the published answers, with no help from the
suite's own code."""

import collections
import itertools
import pathlib
import runpy

import numpy as np
import pytest
from transformers import AutoTokenizer

from rdbcl_jax.data import easy_vqa
from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.suites import TaughtSuite, TracedSuite, find_task
from rdbcl_jax.lab.suites import easy_vqa_traced as suite
from rdbcl_jax.lab.suites.easy_vqa_traced import KINDS, TASKS, Procedure
from rdbcl_jax.models import read_processor
from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.toy import tiny

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = {"circle", "rectangle", "triangle"}
LOOKS, TURNS = ("shape", "color"), ("name", "plain", "negated")
ALL = [Procedure(*p) for p in itertools.product(LOOKS, TURNS)]


def carried_out(record, procedure, seen=None, verdict=None):
    """Words of the reasoning, and the answer."""
    words = record.prompt.rstrip("?").split()
    values = SHAPES | {"black", "gray", "red", "green", "blue", "yellow", "teal", "brown"}
    named = "any" if words[0] == "what" else next(w for w in words if w in values)
    seen = seen or record.columns[procedure.look]
    verdict = verdict or ("same" if named in ("any", seen) else "differ")
    says_yes = {"plain": verdict == "same", "negated": verdict == "differ"}
    answer = (
        seen if procedure.turn == "name" else {True: "yes", False: "no"}[says_yes[procedure.turn]]
    )
    return [procedure.look, seen, procedure.turn, named, verdict], answer


def split_trace(text):
    parsed = parse(text)
    assert parsed.ok, parsed.problem
    return parsed.reasoning.split(), parsed.answer


@pytest.mark.parametrize("task", TASKS)
def test_right_traces_give_the_published_answer_and_all_follow_the_rules(task):
    records = suite.make_records(task, "validation", 200, seed=3)
    assert len(records) > 150
    for record in records:
        for procedure in ALL:
            assert split_trace(suite.make_trace(record, procedure)) == carried_out(
                record, procedure
            )
        assert split_trace(suite.make_trace(record))[1] == record.answer
        assert record.columns["response"] == suite.make_trace(record)


@pytest.mark.parametrize(
    "question,kind",
    [
        ("what shape does the image contain?", "what_shape"),
        ("what is the blue shape?", "what_shape"),
        ("what color is the triangle?", "what_color"),
        ("what is the color of the shape?", "what_color"),
        ("is a circle present?", "has_shape"),
        ("does the image contain a red shape?", "has_color"),
        ("is no circle present?", "lacks_shape"),
        ("is there not a teal shape?", "lacks_color"),
    ],
)
def test_what_is_asked(question, kind):
    assert suite.kind_of(question)[0] == kind


def test_each_form_of_every_published_question_is_in_one_task():
    forms = suite.forms()
    questions = {record.prompt for record in easy_vqa.make_records("all", "train", 10**9, 0)}
    assert {suite.form_of(q) for q in questions} == {f for kind in forms.values() for f in kind}
    assert forms.keys() == KINDS.keys() and {len(found) for found in forms.values()} == {4}
    parts = [(kind, n) for kinds, some in TASKS.values() for kind in kinds for n in some]
    assert sorted(parts) == sorted(itertools.product(KINDS, range(4)))
    for (shape, color), _ in TASKS.values():
        assert (KINDS[shape].look, KINDS[color].look) == ("shape", "color")
        assert KINDS[shape].turn != KINDS[color].turn


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_kinds_and_answers_are_equally_frequent_and_pictures_their_splits_own(task, split):
    records = suite.make_records(task, split, 10**9, seed=0)
    answers = collections.defaultdict(collections.Counter)
    for record in records:
        kind, _ = suite.kind_of(record.prompt)
        assert kind in TASKS[task][0]
        answers[kind][record.answer] += 1
    sizes = {kind: sum(found.values()) for kind, found in answers.items()}
    assert len(sizes) == 2 and max(sizes.values()) - min(sizes.values()) < 8
    for kind, found in answers.items():
        assert len(set(found.values())) == 1
        colors = {"black", "gray", "red", "green", "blue", "yellow", "teal", "brown"}
        expected = {"what_shape": SHAPES, "what_color": colors}.get(kind, {"yes", "no"})
        assert found.keys() == expected
    published = easy_vqa.make_records("all", split, 10**9, 0)
    assert {r.images for r in records} <= {r.images for r in published}
    assert len({r.id for r in records}) == len(records) > 200


@pytest.mark.parametrize("task", TASKS)
def test_records_come_again_after_the_last(task):
    records = suite.make_records(task, "test", 10**9, seed=1)
    assert suite.make_records(task, "test", 5, seed=1) == records[:5]
    assert suite.make_record(task, "test", len(records) + 2, 1) == records[2]
    others = suite.make_records(task, "test", 10**9, seed=2)
    assert [r.id for r in others] != [r.id for r in records]


@pytest.mark.parametrize("task", TASKS)
def test_what_was_taught_solves_a_part_of_every_task(task):
    records = suite.make_records(task, "train", 1000, seed=1)
    taught = {suite.form_of(r.prompt): (suite.taught(r), suite.verified(r)) for r in records}
    changed = [(p.look != right.look, p.turn != right.turn) for p, right in taught.values()]
    assert sorted(changed) == [(False, False), (False, True), (True, False), (True, True)]
    right = [carried_out(r, suite.taught(r))[1] == r.answer for r in records]
    assert 0.2 < np.mean(right) < 0.6


def test_demonstrations_take_what_was_taught_mostly():
    source = suite.Demonstrations(3000, seed=0, follow=0.7)
    assert len(source) == 3000 and source[42] == suite.Demonstrations(3000, 0, 0.7)[42]
    followed, slips, tasks = [], [], set()
    for record, response in map(source.__getitem__, range(3000)):
        (look, seen, turn, _, _), _ = taken = split_trace(response)
        assert taken == carried_out(record, Procedure(look, turn), seen)
        slips.append(seen != record.columns[look])
        wanted = suite.taught(record)
        followed.append([look == wanted.look, turn == wanted.turn])
        tasks.add(record.task)
    assert tasks == set(TASKS) and np.mean(slips) == pytest.approx(1 / 12, abs=0.02)
    assert np.mean(followed, axis=0) == pytest.approx([0.7, 0.7], abs=0.03)
    assert np.corrcoef(*np.transpose(followed))[0, 1] == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("last", [False, True])
def test_a_mistake_carries_on_to_the_answer(task, last):
    rng, changed = np.random.default_rng(0), 0
    for record in suite.make_records(task, "test", 50, seed=0):
        right = suite.verified(record)
        changes, length = suite.mistake(record, right, last, rng)
        words, answer = split_trace(trace := suite.make_trace(record, right, changes))
        before, was = carried_out(record, right)
        sees = not last or right.turn == "name"
        overwritten = {"seen": words[1]} if sees else {"verdict": words[4]}
        assert (words, answer) == carried_out(record, right, **overwritten)
        place = 1 if sees else 4
        assert trace.split()[length - 1] == words[place] != before[place]
        assert not sees or (words[1] in SHAPES) == (right.look == "shape")
        changed += answer != was
    # another shape or color that is not the one named differs from it too
    assert changed > 20


def test_named_procedure_takes_whole_traces_only():
    assert suite.named_procedure("color red plain red same") == Procedure("color", "plain")
    assert suite.named_procedure("color red red same") is None
    assert suite.named_procedure("color shape red name any same") is None


def test_unknown_task():
    with pytest.raises(ValueError, match="'shape'"):
        suite.make_records("shape", "train", 1, seed=0)
    with pytest.raises(ValueError, match="'shape'"):
        suite.make_record("shape", "train", 1, seed=0)


def test_prompts_and_responses_fit_the_testbed(tmp_path):
    config = runpy.run_path(str(ROOT / "configs/studies/testbed_vqa.py"))["get_config"]()
    found = [find_task(name, TracedSuite) for name in config.sequence]
    assert {task for _, task in found} == set(TASKS)
    assert find_task(config.sequence[0], TaughtSuite)[0] is suite
    size = tiny.TinySize(**config.base.size)
    path = tiny.write_tiny_model(tmp_path, size, extra_words=suite.words())
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoder = PromptEncoder(
        tokenizer,
        read_processor(path, patch_slots=config.data.patch_slots),
        lengths=config.data.prompt_lengths,
        response_lengths=(config.rollout.max_tokens,),
    )
    for task in TASKS:
        records = suite.make_records(task, "test", 60, seed=0)
        batch = encoder.encode_supervised(records, [suite.make_trace(r) for r in records])
        assert set(batch.mask.sum(-1).flat) == {11} and config.rollout.max_tokens >= 11
        unknown = tokenizer.unk_token_id
        assert unknown not in batch.prompts.tokens and unknown not in batch.tokens
