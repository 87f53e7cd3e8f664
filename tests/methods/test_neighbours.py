"""The neighbours' formulas and samplers, against numbers worked out by hand."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.methods.demonstrations import DemonstrationOptions
from rdbcl_jax.methods.mixture import taught_share
from rdbcl_jax.methods.pcurl import distinct_ngrams
from rdbcl_jax.methods.prompts import (
    PromptOptions,
    distinct_share,
    prompt_filter,
    prompt_sampler,
)
from rdbcl_jax.methods.reinforce_ada import above_mean, balanced, done
from rdbcl_jax.methods.shuffle_r1 import contrasting, draw_pairs
from rdbcl_jax.sharding import RowShard
from rdbcl_jax.training.experience import halved
from tests.methods.test_methods import GROUP, POLICY, RANGE, batch, changed, method, targets

__all__ = ["batch"]  # the fixture

NEIGHBOURS = ("grpo_d", "vas", "one_shot", "pcurl", "shuffle_r1", "reinforce_ada", "gdpo", "sft_rl")


# ---------------------------------------------------------------------- β over a task's steps


def test_schedules_multiply_whatever_beta_a_method_has(batch):
    def betas(name, step, **changes):
        here = changed(batch, task_step=step, task_steps=10)
        return np.asarray(targets(name, here, **changes).kl_coef)

    # from the middle, 0.07, by the third of ten steps to 0.04, at the end 0.1
    for step, beta in ((0, 0.06), (2, 0.04), (5, 0.04 + 0.06 * 3 / 7), (9, 0.1)):
        np.testing.assert_allclose(betas("grpo_d", step), np.full((2, 2), beta), rtol=1e-5)
    geometry = {"kl.beta": 0.02, "kl.floor": 0.0}
    np.testing.assert_allclose(betas("grpo_d", 0, **geometry), np.full((2, 2), 0.02 / 3), rtol=1e-5)
    rising = {**RANGE, "portability.mapping": "clip", "kl.schedule": "rise", "kl.floor": 0.5}
    np.testing.assert_allclose(betas("rdbcl", 9, **rising), [[0.5, 0.3]] * 2, rtol=1e-5)
    np.testing.assert_allclose(betas("rdbcl", 4, **rising), [[0.375, 0.225]] * 2, rtol=1e-5)
    assert method("grpo_d").scheduled and not method("grpo").scheduled
    assert not method("grpo_d", **{"kl.beta": 0.0}).scheduled  # it has no β


def test_any_method_that_samples_takes_portability(batch):
    options = {**RANGE, "portability.mapping": "clip", "kl.portability": True}
    given = {name: jnp.ones((2, 2)) for name in ("advantage", "summed", "repetition", "length")}
    batch = changed(batch, task_step=0, task_steps=3)
    batch = dataclasses.replace(batch, given=given)
    for name in ("dr_grpo", "dapo", "mssr", "rapo", "dyme", *NEIGHBOURS[:-1]):  # not sft_rl
        samples = 1 if name == "mssr" else 8
        chosen = method(name, **options, **{"rollout.samples": samples})
        assert chosen.previous
        own = "base" if name == "rapo" else "previous"
        assert chosen.reference == own, name
        without = method(name, **options, **{"rollout.samples": samples, "kl.beta": 0.0})
        assert without.reference == own, name  # RP's β is anchored there, whatever β says
        if name not in ("mssr", "grpo_d"):
            found = chosen.targets(batch, POLICY, None)
            np.testing.assert_allclose(found.kl_coef, [[0.5, 0.3]] * 2, rtol=1e-5)
            assert "rp" in found.values
    for name, message in (("sft", "expected False"), ("replay", "'portable_replay'")):
        with pytest.raises(ValueError, match=message):
            method(name, **{"kl.portability": True})


def test_the_importance_weight_of_the_kl_reaches_the_loss():
    assert not method("grpo").loss.keywords["kl_importance_weighted"]
    weighted = method("rdbcl", **{"kl.importance_weighted": True})
    assert weighted.loss.keywords["kl_importance_weighted"]


# ---------------------------------------------------------------------- PCuRL


def test_pcurl_weighs_by_difficulty_and_shapes_in_the_last_stage(batch):
    lengths = jnp.arange(4)[None, None] < jnp.array([[4, 1], [2, 2]])[..., None]
    batch = changed(batch, mask=lengths, rewards=[[1.0, 0.0], [0.0, 1.0]], task_steps=6)
    batch = changed(batch, accuracies=[[1.0, 0.0], [0.0, 0.0]])
    given = {"repetition": jnp.array([[-0.5, -0.1], [0, -0.2]]), "length": lengths.sum(-1)}
    batch = dataclasses.replace(batch, given=given)
    plain = {"loss.advantage_scale": "none"}

    def found(step):
        return targets("pcurl", changed(batch, task_step=step), **plain)

    # p = ½ and 0
    np.testing.assert_allclose(found(0).advantages, [[0.5, -0.5], [0, 0]], rtol=1e-5)
    np.testing.assert_allclose(found(1).advantages, found(0).advantages)
    np.testing.assert_allclose(found(2).advantages, [[0.5, -0.5], [0, 0]], rtol=1e-5)
    # of the wrong one, a quarter of the right one's length: −¼ (1 + cos ¼π) − 0.1
    wrong = -0.25 * (1 + np.sqrt(0.5)) - 0.1
    alone = np.array([0, -0.2]) - 0.125 * (1 + np.cos(np.pi * 2 / 750))
    shaped = found(4).values["shaping"]
    np.testing.assert_allclose(shaped, [[0, wrong], alone], rtol=1e-5)
    second = np.array([0.0, 1.0]) + alone
    expected = [[(1 - wrong) / 2, -(1 - wrong) / 2], 0.25 * (second - second.mean())]
    np.testing.assert_allclose(found(5).advantages, expected, rtol=1e-5)
    assert (np.asarray(found(3).values["shaping"]) == 0).all()
    assert method("pcurl").scheduled
    # one that is masked, since it was cut, is no shorter for that
    cut = changed(batch, mask=batch.mask.at[0, 1].set(False), task_step=4)
    np.testing.assert_array_equal(targets("pcurl", cut, **plain).values["shaping"], shaped)


def test_repetition_is_of_n_grams():
    assert distinct_ngrams("a b a b a", 2) == 0.5  # ab ba ab ba
    assert distinct_ngrams("a b", 3) == 1.0


# ---------------------------------------------------------------------- Shuffle-R1


def test_shuffle_r1_pairs_the_best_with_the_worst():
    advantages = np.array([[0.1, -2.0, 3.0, 0.5, -0.2, 1.0, -1.0, 0.0]])
    assert contrasting(advantages).tolist() == [[2, 1, 5, 6]]


def test_pairs_are_drawn_by_their_contrast():
    contrast = np.array([[3.0, 1.0], [0.0, 0.0]])
    one = draw_pairs(contrast, np.random.default_rng(0), 4)  # a quarter of four pairs a pass
    assert one.sum() == 4 and one[1].sum() == 0
    often = sum(draw_pairs(contrast, np.random.default_rng(i), 4) for i in range(1000))
    np.testing.assert_allclose(often / often.sum(), [[0.75, 0.25], [0, 0]], atol=0.02)
    # without replacement within a pass, and never what has no contrast
    assert draw_pairs(contrast, np.random.default_rng(0), 1).tolist() == [[1, 1], [0, 0]]
    assert draw_pairs(np.zeros((2, 2)), np.random.default_rng(0), 8).sum() == 0


# ---------------------------------------------------------------------- Reinforce-Ada


def test_reinforce_ada_asks_until_there_is_enough_and_keeps_both_kinds():
    right = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
    drawn = np.ones((4, 4), bool)
    assert done(right, drawn, 2, 2).tolist() == [False, False, False, True]
    assert done(right, drawn, 1, 0).tolist() == [True, True, False, True]
    drawn[3, 1] = False
    assert not done(right, drawn, 2, 2)[3]
    # two of each; one right; none; the response that was not drawn is left out
    assert balanced(right[:1], drawn[:1], 4).tolist() == [[0, 1, 2, 3]]
    assert balanced(right, drawn, 2).tolist() == [[0, 3], [0, 1], [0, 1], [0, 2]]
    rewards = np.array([[1, 1, 1, 0.0], [0.3] * 4, [0, np.nan, 1, 0], [1, 9, 0, 0]])
    found = above_mean(rewards, drawn)
    third = [-1 / 3, 0, 2 / 3, -1 / 3]
    np.testing.assert_allclose(
        found,
        [[0.25, 0.25, 0.25, -0.75], [0] * 4, third, [2 / 3, 0, -1 / 3, -1 / 3]],
        rtol=1e-6,
    )
    alike = np.array([[0.1 + 0.2, 0.3, 0.3, 0.3]])  # but for the last bit of a double
    assert (above_mean(alike, drawn[:1]) == 0).all()


def test_further_rounds_are_of_half_the_batch_where_that_suffices():
    wanted = np.zeros((2, 4), bool)
    wanted[0, 3] = wanted[1, 1] = wanted[1, 2] = True
    assert halved(wanted, 2).tolist() == [3, 0, 5, 6]
    assert halved(wanted, 3).tolist() == [3, 0, 1, 2, 5, 6, 4, 7]  # another process has three
    assert halved(wanted[:1], 1).tolist() == [3]
    assert halved(np.ones((1, 3), bool), 3).tolist() == [0, 1, 2]


def test_what_the_host_gives_is_the_advantage(batch):
    given = jnp.array([[0.25, -0.75], [0.0, 2.0]])
    for name in ("shuffle_r1", "reinforce_ada"):
        found = dataclasses.replace(batch, given={"advantage": given})
        np.testing.assert_array_equal(targets(name, found).advantages, given)
        assert method(name).reference is None


# ---------------------------------------------------------------------- GDPO, one-shot, mixtures


def test_gdpo_normalises_the_sum_over_the_batch(batch):
    summed = jnp.array([[1.0, -1.0], [3.0, jnp.nan]])
    found = targets("gdpo", dataclasses.replace(batch, given={"summed": summed})).advantages
    np.testing.assert_allclose(found, [[0, -2 / 2.0001], [2 / 2.0001, 0]], atol=1e-6)


def test_one_shot_compares_all_responses_of_a_batch(batch):
    found = targets("one_shot", batch, **{"loss.advantage_scale": "none"}).advantages
    np.testing.assert_allclose(found, [[0.25, -0.75], [0.25, 0.25]])
    grouped = targets("one_shot", batch, **{"prompts.order": "uniform"})
    np.testing.assert_allclose(grouped.advantages, GROUP, rtol=1e-5)
    assert (
        method("one_shot").prompts
        and method("one_shot", **{"prompts.order": "uniform"}).prompts is None
    )


def test_sft_rl_teaches_some_groups_with_the_weight_of_one_sequence_each(batch):
    taught = changed(batch, demonstrated=[[False, False], [True, False]])
    found = targets("sft_rl", taught, **{"kl.beta": 0.1})
    np.testing.assert_allclose(found.advantages, [GROUP[0], [2, 0]], rtol=1e-5)
    np.testing.assert_allclose(found.kl_coef, [[0.1, 0.1], [0, 0]], rtol=1e-6)


def test_what_share_is_taught():
    def shares(mixture):
        options = DemonstrationOptions(mixture=mixture, share=0.25, period=3)
        return [taught_share(options, step, 4) for step in range(4)]

    assert shares("mixed") == [0.25] * 4
    assert shares("interleaved") == [1, 0, 0, 1]
    assert shares("progressive") == [1, 0.75, 0.5, 0.25]
    assert method("sft_rl", **{"demonstrations.mixture": "progressive"}).scheduled


@pytest.mark.parametrize("order", [None, "variance"])
def test_prompts_are_taught_whatever_their_place_in_the_batch(order, monkeypatch):
    """A sampler by variance puts those of the highest scores first: all would be taught."""
    chosen = method("sft_rl", **{"rollout.prompts": 8, "prompts.order": order})
    monkeypatch.setattr("rdbcl_jax.methods.mixture.taught", lambda s, rows, *_: rows.tolist())
    scored, found = types.SimpleNamespace(records=[None] * 4), []
    for step in range(200):
        halves = []
        for process in range(2):
            rows = RowShard((process,), 2)
            draws = types.SimpleNamespace(
                policy=types.SimpleNamespace(rows=rows),
                rng=np.random.default_rng(step),
                task_step=0,
                task_steps=9,
            )
            places = rows.rows(8)
            halves += places[chosen.revise(scored, draws)].tolist()
        assert len(halves) == 4  # half of the batch, over all processes
        found += halves
    np.testing.assert_allclose(np.bincount(found, minlength=8) / 200, np.full(8, 0.5), atol=0.12)


# ---------------------------------------------------------------------- which prompts


def frequencies(sampler, state, size, draws=2000, progress=0.0):
    """How often each prompt is in a batch."""
    ids = [sampler.choose(state, np.random.default_rng(i), size, progress) for i in range(draws)]
    assert all(len(batch) == size for batch in ids)
    return np.bincount(np.concatenate(ids), minlength=len(np.atleast_1d(state))) / draws


def test_a_filter_keeps_what_can_be_learned():
    solvable, mixed = (prompt_filter(rule, 4) for rule in ("solvable", "mixed"))
    assert solvable.survey.samples == 4 and solvable.survey.every == 0
    assert solvable.survey.value(["a", "b"], np.array([True, False])) == 0.5
    share = np.array([0, 0.25, 0.75, 1], np.float32)
    assert solvable.keeps(share).tolist() == [False, True, True, True]
    assert mixed.keeps(share).tolist() == [False, True, True, False]
    assert prompt_filter("none", 4) is None


def test_any_method_that_learns_takes_a_filter():
    for name in ("grpo", "joint", "sft", "vas"):
        assert method(name).filter is None
        assert (
            method(name, **{"prompts.filter": "mixed", "prompts.samples": 5}).filter.survey[1] == 5
        )
    with pytest.raises(
        ValueError, match=r"prompts\.filter is 'mixed', and zero_shot learns nothing"
    ):
        method("zero_shot", **{"prompts.filter": "mixed"})
    with pytest.raises(ValueError, match=r"prompts\.filter is 'solved', expected one of"):
        method("grpo", **{"prompts.filter": "solved"})


def test_mastered_prompts_are_told_by_gold_answers():
    assert method("replay", **{"replay.prompts": "mastered"}).data == "replay"
    with pytest.raises(ValueError, match=r"replay\.prompts is 'mastered', .* expected 'all'"):
        method("replay", **{"replay.prompts": "mastered", "replay.kept": "questions"})


def test_half_of_a_batch_is_drawn_by_variance_the_rest_alike():
    sampler = prompt_sampler("variance", PromptOptions(share=0.5))
    scores = np.array([0.3, 0.1, 0.0, 0.0])
    expected = 2 * np.array([0.75, 0.25, 0, 0]) + 2 * 0.25
    np.testing.assert_allclose(frequencies(sampler, scores, 4), expected, atol=0.05)
    np.testing.assert_allclose(frequencies(sampler, np.zeros(4), 4), np.ones(4), atol=0.05)
    assert sampler.survey.every == 35 and sampler.survey.samples == 32
    # ¼ · 0.8 of the variance, and of bigrams two of three are distinct
    found = sampler.survey.value(["a b c", "a b"], np.array([True, False]))
    np.testing.assert_allclose(found, 0.8 * 0.25 + 0.2 * 2 / 3)
    assert distinct_share(["a", ""]) == 0.0


def test_stages_go_from_what_is_solved_to_what_is_not():
    sampler = prompt_sampler("stages", PromptOptions(stages=2))
    success = np.array([0.1, 0.9, 0.5, 0.0])
    np.testing.assert_allclose(frequencies(sampler, success, 2, 50), [0, 1, 1, 0])
    np.testing.assert_allclose(frequencies(sampler, success, 2, 50, progress=0.5), [1, 0, 0, 1])
    assert len(sampler.choose(success, np.random.default_rng(0), 7, 0.99)) == 7
    assert sampler.survey.every == 0 and method("grpo", **{"prompts.order": "stages"}).scheduled


def test_volatile_prompts_are_visited_again_and_unknown_ones_in_between():
    sampler = prompt_sampler("volatility", PromptOptions(exploration=0.2))
    rng, state = np.random.default_rng(0), sampler.start(3)
    first = sampler.choose(state, rng, 4, 0.0)
    assert len(first) == 4 and len(set(first)) == 1  # one prompt
    rewards = np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, 0.0], [0.0, 0.0]])
    state = sampler.observe(sampler.start(3), np.array([1, 1, 0, 0]), rewards)
    assert state.count.tolist() == [1, 1, 0]
    np.testing.assert_allclose(state.volatility, [0, np.std([1, 0, 1]), 0])
    # 0.47 + 0.2 √(log 3 / 2) of the volatile one, 0.2 √log 3 of the unknown one
    assert sampler.choose(state, rng, 1, 0.0).tolist() == [1]
    still = sampler.observe(state, np.array([1]), np.zeros((1, 2)))
    assert sampler.choose(still, rng, 1, 0.0).tolist() == [2]
    assert (state.volatility[1] > 0) and still.volatility[1] == 0  # the old state is as it was


def test_an_order_by_rewards_needs_responses():
    with pytest.raises(ValueError, match=r"order is .variance., .* samples no responses"):
        method("sft", **{"prompts.order": "variance"})
    for name, options, message in (
        ("shuffle_r1", {"rollout.samples": 6}, "expected a multiple of 4"),
        ("reinforce_ada", {"rollout.samples": 2}, "reinforce_ada.keep is 4"),
        ("sft", {"loss.entropy_bonus": 0.1}, "of sampled responses"),
    ):
        with pytest.raises(ValueError, match=message):
            method(name, **options)


# ---------------------------------------------------------------------- tokens that learn


def test_only_unsure_tokens_and_whole_responses_learn(batch):
    entropies = jnp.arange(16.0).reshape(2, 2, 4)
    chosen = method("grpo", **{"loss.entropy_share": 0.75})
    assert chosen.entropies and chosen.policy
    found = np.asarray(chosen.targets(batch, POLICY, entropies).advantages)
    np.testing.assert_allclose(found[0, 1], [GROUP[0][1]] * 4, rtol=1e-5)
    assert (found[0, 0] == 0).all()  # the quarter of the least entropy
    cut = changed(batch, mask=batch.mask.at[0, 1].set(False))
    found = targets("grpo", cut, **{"loss.mask_truncated": True}).advantages
    np.testing.assert_allclose(found, [[GROUP[0][0], 0], [0, 0]], rtol=1e-5)
