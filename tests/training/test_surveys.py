"""Which prompts are left out of a task, or of what it rehearses, by the answers to them."""

import dataclasses
import types

import numpy as np
import pytest

from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.prompts import PromptOptions, prompt_sampler
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.rewards.scoring import judge
from rdbcl_jax.training import experience, rehearsal, run, surveys
from rdbcl_jax.training.run import train
from rdbcl_jax.training.stage import Stage
from rdbcl_jax.training.state import TaskState
from tests.engine import write_random_model
from tests.tiny_runs import killed_at, tiny_config


def even(name):
    return int(name.rsplit("-", 1)[1]) % 2 == 0


def even_are_right(records, texts, **others):
    """Every other record is answered right, whatever is said: the tiny model answers nothing."""
    right = np.array([even(record.id) for record in records], float)
    return dataclasses.replace(judge(records, texts), accuracy=right)


def half_right(records, texts, **others):
    """As before, but of the responses to the even ones every other is wrong."""
    scores = even_are_right(records, texts)
    return dataclasses.replace(scores, accuracy=scores.accuracy * (np.arange(len(texts)) % 2))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model") / "base")


# ---------------------------------------------------------------------- which prompts batches hold


def feed(learned, order, old, **options):
    """The prompts of each batch of six, of eight own ones and `old` others."""
    config = tiny_config("", **{"rollout.prompts": 6, "prompts.order": order, "method": "grpo"})
    if old:
        config.method = "replay"
    config.update_from_flattened_dict(options)
    method = make_method(config)
    encoder = types.SimpleNamespace(encode=lambda records, ids: np.asarray(ids))
    rows = types.SimpleNamespace(rows=np.arange)
    policy = types.SimpleNamespace(rows=rows, encoder=encoder)
    learner = types.SimpleNamespace(
        config=run.RunConfig.of(config), method=method, policy=policy, sampling=None
    )
    stage = Stage([*range(8 + old)], None, None, old)
    known = method.prompts and method.prompts.start(8)
    state = types.SimpleNamespace(learned=learned, batches=0, prompts=known)
    chosen = experience.make_feed(learner, stage, 0, state)
    for number in range(40):
        state.batches = number
        yield np.asarray(chosen(state, 0))


@pytest.mark.parametrize("order", ["uniform", "variance", "stages", "volatility"])
@pytest.mark.parametrize("old", [0, 3])
def test_batches_hold_prompts_that_pass_whatever_their_order(order, old):
    learned = np.isin(np.arange(8), [1, 4, 7])
    batches = np.array([*feed(learned, order, old)])
    assert batches.shape == (40, 6)
    replayed = 2 * bool(old)  # a quarter of six
    own, others = batches[:, : 6 - replayed], batches[:, 6 - replayed :]
    assert (others >= 8).all() and {*others.flat} == {*range(8, 8 + old)}
    counts = np.bincount(own.flat, minlength=8) / own.size
    if order == "volatility":  # the one that is most so, of equals at random
        assert {*own.flat} <= {1, 4, 7} and all(len({*batch}) == 1 for batch in own)
    elif order == "stages":  # the first of three parts
        assert {*own.flat} == {1}
    else:
        np.testing.assert_allclose(counts, learned / 3, atol=0.06 if order == "variance" else 0.01)


def test_without_a_filter_batches_are_what_they_were():
    every = [*feed(None, "uniform", 3)]
    passing = [*feed(np.ones(8, bool), "uniform", 3)]
    order = experience.rehearsed(8, 3, 6, 2, 0)
    for number, (batch, other) in enumerate(zip(every, passing, strict=True)):
        np.testing.assert_array_equal(batch, other)
        np.testing.assert_array_equal(batch, order[number])


def test_a_sampler_is_shown_what_it_knows_of_prompts_that_pass():
    sampler = prompt_sampler("stages", PromptOptions(stages=2))
    success = np.array([0.9, 0.1, 0.5, 0.3])
    own = np.array([0, 1, 3])  # 2 is left out: of three the easier two come first
    drawn = {
        int(i)
        for seed in range(20)
        for i in own[sampler.choose(success[own], np.random.default_rng(seed), 1, 0.0)]
    }
    assert drawn == {0, 3}


def test_a_sampler_asks_the_tasks_own_prompts_alone(monkeypatch):
    """Of those that are replayed it knows nothing, and responses to them would be thrown away."""
    asked = []

    def spy(learner, params, records, survey, key):
        asked.extend(records)
        return np.ones(len(records), np.float32)

    monkeypatch.setattr(experience, "surveyed", spy)
    method = make_method(tiny_config("", "replay", **{"prompts.order": "variance"}))
    learner = types.SimpleNamespace(config=types.SimpleNamespace(seed=0), method=method)
    stage = Stage([*"abcdef"], None, None, 2)
    start = TaskState(types.SimpleNamespace(params=None), 0, None, 0, method.prompts.start(4))
    state = experience.Experience(learner, stage, 0, None).surveyed(start, 0)
    assert asked == [*"abcd"]
    np.testing.assert_array_equal(state.prompts, method.prompts.refresh(start.prompts, np.ones(4)))


# ---------------------------------------------------------------------- whole runs


def prompts(workdir, first=0, stop=None):
    rows = read_samples(workdir).select(["step", "record_id"]).to_pylist()
    return [row["record_id"] for row in rows if first <= row["step"] < (stop or 1e9)]


@pytest.mark.slow
def test_a_filtered_run_resumes_to_the_same_bits(base, tmp_path, monkeypatch):
    """Killed within a task, it asks nothing anew: the state knows which prompts pass."""
    asked = []
    monkeypatch.setattr(surveys, "judge", half_right)
    surveyed = surveys.surveyed

    def spy(learner, params, records, survey, *others):
        asked.append(survey.samples)
        return surveyed(learner, params, records, survey, *others)

    monkeypatch.setattr(surveys, "surveyed", spy)
    options = {"prompts.filter": "mixed", "prompts.samples": 2, "training.checkpoint_every": 1}
    config = tiny_config(base, "grpo", **options)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    results = train(config, whole)
    assert asked == [2, 2] and all(map(even, prompts(whole)))
    assert len({*prompts(whole, 0, 3)}) == 24  # of 32 that pass, none twice
    killed_at(4, config, parts)  # the second step of the second task
    assert asked == [2] * 4
    assert train(config, parts).splits == results.splits
    assert asked == [2] * 4
    assert read_samples(parts).equals(read_samples(whole))
    for mine, other in zip(read_run(parts).steps, read_run(whole).steps, strict=True):
        assert {**mine, "step_time": 0} == {**other, "step_time": 0}


@pytest.mark.slow
@pytest.mark.parametrize("order,surveys_of_a_task", [("stages", 1), ("variance", 2)])
def test_a_filter_and_stages_ask_all_prompts_once(
    base, tmp_path, monkeypatch, order, surveys_of_a_task
):
    """Both want the share of right responses before a task, of as many responses."""
    asked, surveyed = [], surveys.surveyed

    def spy(learner, params, records, survey, *others):
        asked.append(survey.samples)
        return surveyed(learner, params, records, survey, *others)

    monkeypatch.setattr(surveys, "judge", half_right)
    for module in (surveys, experience):
        monkeypatch.setattr(module, "surveyed", spy)
    options = {"prompts.filter": "solvable", "prompts.order": order, "prompts.samples": 2}
    ranked = []
    draw = experience.Experience.draw

    def ranks(self, state, index, attempt=0):
        ranked.append(state.prompts)
        return draw(self, state, index, attempt)

    monkeypatch.setattr(experience.Experience, "draw", ranks)
    train(tiny_config(base, "grpo", **options), tmp_path)
    assert asked == [2] * surveys_of_a_task * 2
    assert all(map(even, prompts(tmp_path)))
    if order == "stages":  # the sampler ranks by what they answered, and not by its first guess
        assert {*ranked[0].tolist()} == {0.0, 0.5} == {*ranked[-1].tolist()}


@pytest.mark.slow
def test_what_passes_is_told_and_where_nothing_does_all_are_learned_from(base, tmp_path, capsys):
    config = tiny_config(base, "sft", **{"prompts.filter": "solvable", "prompts.samples": 1})
    train(config, tmp_path)  # the real judge: nothing is right
    assert (
        "none of 64 prompts passes prompts.filter: all are learned from" in capsys.readouterr().out
    )
    assert not all(map(even, prompts(tmp_path)))


@pytest.mark.slow
def test_mastered_prompts_alone_are_rehearsed(base, tmp_path, monkeypatch):
    monkeypatch.setattr(surveys, "judge", even_are_right)
    said, found = [], []

    def spy(learner, tasks, k, previous, say):
        given = learner, tasks, k, previous, said.append
        found.append(rehearsal.old_prompts(*given))
        again = rehearsal.old_prompts(*given)  # as after a resume
        assert [[*part] for part in found[-1]] == [[*part] for part in again]
        return found[-1]

    monkeypatch.setattr(run, "old_prompts", spy)
    options = {"replay.prompts": "mastered", "replay.per_task": 8}
    train(tiny_config(base, "replay", **options), tmp_path)
    nothing, [old] = found
    assert nothing == [] and len(old) == 4 and all(even(record.id) for record in old)
    assert said[0] == "note: jigsaw rehearses 4 of 8 old records: the others are not mastered"
    rehearsed = [name for name in prompts(tmp_path, 3) if name.startswith("sum")]
    assert len(rehearsed) == 3 * 2 * 4 and {*rehearsed} == {record.id for record in old}
    with monkeypatch.context() as patch:  # nothing is mastered, so nothing is rehearsed
        patch.setattr(surveys, "judge", judge)
        train(tiny_config(base, "replay", **options), tmp_path / "nothing")
    assert found[-1] == [] and not any(
        n.startswith("sum") for n in prompts(tmp_path / "nothing", 3)
    )
