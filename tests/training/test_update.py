"""The fused update: exact at a task's start, exact under accumulation and sharding."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from rdbcl_jax.config import OptimizerConfig
from rdbcl_jax.core.advantages import group_advantages
from rdbcl_jax.methods import make_method
from rdbcl_jax.sharding import make_mesh, put_batch
from rdbcl_jax.training.logprobs import compiled_logprobs
from rdbcl_jax.training.optimizer import learning_rate, make_optimizer
from rdbcl_jax.training.state import TrainState, make_init
from rdbcl_jax.training.update import Consolidation, UpdateConfig, make_update, spreads
from tests import engine
from tests.engine import method


@pytest.fixture(scope="module")
def sampled(loaded):
    return engine.rollout(*loaded)


def scored(policy, params, prompts, rollouts):
    return compiled_logprobs(
        policy.model,
        params,
        prompts,
        rollouts.tokens,
        rollouts.mask,
        temperature=1.0,
        chunk_size=64,
    )


# rewards that are all but equal: one group has a signal too faint to move anything
WHISPER = jnp.zeros((8, 4)).at[0, 0].set(1e-7)


def moved(params, scale=0.02):
    keys = iter(jax.random.split(jax.random.key(5), 100))
    return jax.tree.map(lambda a: a + scale * jax.random.normal(next(keys), a.shape), params)


def run(policy, params, batch, chosen=None, optimizer=None, **options):
    return engine.update(policy, params, batch, chosen or method(), optimizer, **options)


def test_at_a_tasks_start_kl_is_exactly_zero_and_rp_exactly_one(loaded, sampled):
    batch = engine.train_batch(*sampled, reference_is_policy=jnp.asarray(True))
    assert batch.prompts.model_inputs.images is not None
    _, metrics, samples = run(*loaded, batch)
    assert metrics["kl"] == 0 and metrics["kl_loss"] == 0
    assert (np.asarray(samples["rp"]) == 1).all() and (np.asarray(samples["kl"]) == 0).all()


def test_scored_reference_equals_the_policy_only_with_its_own_image(loaded, sampled):
    """Without the shortcut: the reference pass sees the pictures."""
    policy, params = loaded
    prompts, rollouts = sampled
    logps = scored(policy, params, prompts, rollouts)
    _, metrics, samples = run(
        policy, params, engine.train_batch(prompts, rollouts, reference_logps=logps)
    )
    assert abs(metrics["kl"]) < 1e-9
    np.testing.assert_allclose(samples["rp"], 1, atol=1e-5)
    seen = prompts.model_inputs
    blank = dataclasses.replace(seen.images, patches=seen.images.patches * 0)
    unseen = dataclasses.replace(prompts, model_inputs=dataclasses.replace(seen, images=blank))
    blind = scored(policy, params, unseen, rollouts)
    _, metrics, _ = run(
        policy, params, engine.train_batch(prompts, rollouts, reference_logps=blind)
    )
    assert metrics["kl"] > 1e-6


def test_sampler_agreement_is_logged(loaded, sampled):
    _, metrics, _ = run(*loaded, engine.train_batch(*sampled))
    assert 0 <= metrics["sampler/logp_difference/max"] < 2e-5


@pytest.mark.parametrize(
    "aggregation,mapping",
    [("sequence_mean", "sigmoid"), ("token_mean", "rank"), ("constant", "minmax")],
)
def test_accumulation_is_exact(loaded, sampled, aggregation, mapping):
    policy, params = loaded
    prompts, rollouts = sampled
    params = moved(params)
    reference = scored(policy, loaded[1], prompts, rollouts)
    old = scored(policy, params, prompts, rollouts)
    batch = engine.train_batch(prompts, rollouts, reference_logps=reference, old_logps=old)
    chosen = method(**{"loss.aggregation": aggregation, "portability.mapping": mapping})
    whole, metrics, samples = run(policy, params, batch, chosen)
    parts, metrics_4, samples_4 = run(policy, params, batch, chosen, microbatches=4)
    for a, b, start in zip(
        *map(jax.tree.leaves, (whole.params, parts.params, params)), strict=True
    ):
        change = np.abs(a - start).max()
        np.testing.assert_allclose(a, b, atol=2e-5 * change + 1e-8)
    for name in ("loss", "kl", "kl_loss", "entropy", "kl_coef/mean", "rp/mean"):
        np.testing.assert_allclose(metrics[name], metrics_4[name], rtol=1e-4, atol=1e-7)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), samples, samples_4
    )


def test_accumulation_needs_no_old_logps_where_targets_do_not(loaded, sampled):
    batch = engine.train_batch(*sampled)
    batch = dataclasses.replace(batch, reference_logps=batch.sampler_logps - 0.1)
    chosen = method("grpo", **{"kl.beta": 0.1})
    _, metrics, _ = run(*loaded, batch, chosen)
    _, metrics_4, _ = run(*loaded, batch, chosen, microbatches=4)
    for name in ("loss", "kl", "grad_norm"):
        np.testing.assert_allclose(metrics[name], metrics_4[name], rtol=1e-4)


def test_accumulation_without_old_logps_is_refused(loaded, sampled):
    with pytest.raises(ValueError, match="old_logps"):
        run(*loaded, engine.train_batch(*sampled), microbatches=4)


def test_update_raises_rewarded_and_lowers_punished_responses(loaded, sampled):
    policy, params = loaded
    prompts, rollouts = sampled
    batch = engine.train_batch(prompts, rollouts)
    state, *_ = run(
        policy,
        params,
        batch,
        method("grpo", **{"kl.beta": 0.0}),
        optax.sgd(1e-2),
    )
    before, after = (scored(policy, p, prompts, rollouts) for p in (params, state.params))
    change = jnp.where(rollouts.mask, after - before, 0).sum(-1)
    weighted = (change * group_advantages(batch.rewards) / rollouts.mask.sum(-1)).mean()
    assert weighted > 0


def test_kl_term_pulls_back_to_the_reference(loaded, sampled):
    policy, params = loaded
    prompts, rollouts = sampled
    away = moved(params)
    reference = scored(policy, params, prompts, rollouts)
    batch = engine.train_batch(prompts, rollouts, reference_logps=reference, rewards=WHISPER)
    options = {"kl.beta": 1.0, "loss.advantage_scale": "none"}
    state, metrics, _ = run(policy, away, batch, method("grpo", **options), optax.sgd(1e-2))
    batch = dataclasses.replace(batch, old_logps=None)
    _, later, _ = run(policy, state.params, batch, method("grpo", **options))
    assert 0 < later["kl"] < metrics["kl"]


def bits(tree):
    """Every array as bytes: 0 and −0 differ."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def broken_batches(sampled):
    """Batches of which loss or gradient is not finite, by what is wrong with one record's."""
    shape, rewards = sampled[1].mask.shape, np.zeros((8, 4), np.float32)
    rewards[:, 0] = 1
    logps = np.asarray(sampled[1].logps)
    for name, value in {"NaN": np.nan, "infinite": -np.inf, "an overflow": 200.0}.items():
        wrong = logps.copy()
        wrong[3] += value
        yield name, engine.train_batch(*sampled, rewards=rewards, reference_logps=wrong)
    unlimited = rewards.copy()
    unlimited[3, 1] = np.inf
    yield (
        "a reward",
        engine.train_batch(
            *sampled, rewards=unlimited, reference_logps=np.zeros(shape, np.float32)
        ),
    )


def test_what_is_logged_of_samples_comes_in_one_order_in_every_process():
    names = ("rp", "kl_coef", "retention", "advantage", "kl", "a", "z", "m", "q", "b")
    found = spreads({name: np.full((2, 2), 3.0) for name in names})
    ordered = sorted({*names} - {"kl", "advantage"})
    assert [*found] == [f"{name}/{kind}" for name in ordered for kind in ("mean", "std")]
    assert found["rp/mean"] == 3 and found["rp/std"] == 0


def test_a_step_that_is_not_finite_changes_no_bit(loaded, sampled):
    policy, params = loaded
    params = jax.tree.map(lambda a: a.at[..., 0].set(-0.0), params)
    optimizer = make_optimizer(engine.small_config().optimizer, 10)
    update = make_update(policy.model, optimizer, method("grpo"), UpdateConfig(chunk_size=64))
    state = TrainState.create(params, optimizer)
    good = engine.train_batch(*sampled, reference_logps=sampled[1].logps)
    state, metrics, _ = update(state, policy.frozen, good)
    assert metrics["updates"] == 1 and metrics["skipped_updates"] == 0
    before = bits((state.params, state.opt_state.inner_state, state.step))
    for n, (name, batch) in enumerate(broken_batches(sampled), 1):
        state, metrics, _ = update(state, policy.frozen, batch)
        now = bits((state.params, state.opt_state.inner_state, state.step))
        assert now == before, name
        assert metrics["skipped_in_a_row"] == metrics["skipped_updates"] == n, name
        assert metrics["updates"] == 1 and not metrics["no_signal"], name
    state, metrics, _ = update(state, policy.frozen, good)
    assert metrics["updates"] == 2 and metrics["skipped_updates"] == n
    assert metrics["skipped_in_a_row"] == 0
    assert bits(state.params) != before[: len(jax.tree.leaves(params))]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_no_signal_is_no_step(loaded, sampled, microbatches):
    """Equal rewards, and a KL whose gradient is rounding: without the rule Adam moves every
    parameter by its whole rate."""
    policy, params = loaded
    optimizer = make_optimizer(engine.small_config().optimizer, 10)
    options = UpdateConfig(chunk_size=64, microbatches=microbatches)
    update = make_update(policy.model, optimizer, method("grpo"), options)
    noise = sampled[1].logps + 1e-7
    equal = engine.train_batch(*sampled, rewards=jnp.ones((8, 4)), reference_logps=noise)
    state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
    before = bits((state.params, state.opt_state))
    state, metrics, samples = update(state, policy.frozen, equal)
    assert bits((state.params, state.opt_state)) == before and state.step == 0
    assert metrics["no_signal"] and metrics["updates"] == 0 and metrics["skipped_updates"] == 0
    assert not samples["advantage"].any() and 0 < metrics["grad_norm"] < 1e-4
    one = engine.train_batch(*sampled, rewards=WHISPER, reference_logps=noise)
    state, metrics, _ = update(state, policy.frozen, one)
    assert not metrics["no_signal"] and state.step == 1 and bits(state.params) != before


@pytest.mark.parametrize("name", ["ewc", "lwf", "sft", "dyme", "mssr"])
def test_methods_with_a_loss_of_their_own_learn_from_equal_rewards(loaded, sampled, name):
    policy, params = loaded
    prompts, rollouts = sampled
    demonstrated = jnp.zeros((8, 4), bool)
    if name in ("lwf", "dyme", "sft"):
        demonstrated = demonstrated.at[:, 0].set(True)
    batch = engine.train_batch(
        prompts, rollouts, rewards=jnp.zeros((8, 4)), demonstrated=demonstrated
    )
    batch = dataclasses.replace(batch, prompt_values=jnp.linspace(0.1, 0.9, 8))  # MSSR's
    chosen = method(name, **({"rollout.samples": 1} if name == "mssr" else {}))
    optimizer = optax.sgd(1e-2)
    update = make_update(policy.model, optimizer, chosen, UpdateConfig(chunk_size=64))
    ones = jax.tree.map(jnp.ones_like, params)
    pull = Consolidation(moved(params), ones) if name == "ewc" else None
    state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
    state, metrics, _ = update(state, policy.frozen, batch, pull)
    assert not metrics["no_signal"] and state.step == 1


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_sharded_update_equals_one_device(directory, loaded, sampled, shape):
    policy, params = loaded
    batch = engine.train_batch(*sampled)
    batch = dataclasses.replace(batch, reference_logps=batch.sampler_logps - 0.1)
    host = jax.device_get(batch)
    expected, metrics, _ = run(policy, params, batch)
    mesh = make_mesh(*shape)
    sharded, sharded_params = engine.load(directory, mesh)
    optimizer = optax.sgd(1.0)
    init, shardings = make_init(sharded_params, optimizer, mesh)
    state = init(sharded_params)
    config = UpdateConfig(chunk_size=64)
    update = make_update(sharded.model, optimizer, method(), config, shardings)
    state, sharded_metrics, _ = update(state, sharded.frozen, put_batch(host, mesh))
    for name in ("loss", "kl", "kl_coef/mean", "rp/mean", "rp/std", "grad_norm"):
        np.testing.assert_allclose(sharded_metrics[name], metrics[name], rtol=1e-4, atol=1e-6)
    for a, b, start in zip(
        *map(jax.tree.leaves, (state.params, expected.params, params)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b - start).max() + 1e-7)
    update(state, sharded.frozen, put_batch(host, mesh))
    assert update._cache_size() == 1  # the new state lies where the old one did


def test_the_update_takes_the_state_over(loaded, sampled):
    policy, params = loaded
    optimizer = make_optimizer(engine.small_config().optimizer, 10)
    update = make_update(policy.model, optimizer, method("grpo"), UpdateConfig(chunk_size=64))
    state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
    update(state, policy.frozen, engine.train_batch(*sampled))
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim and not leaf.is_deleted()]
    assert not kept  # scalars that the optimizer never reads are not even passed


def cosine(progress):
    return (1 + math.cos(math.pi * progress)) / 2


@pytest.mark.parametrize(
    "schedule,rates",  # of the 5th update, the 13th and the last
    [
        ("constant", [1, 1, 1]),
        ("cosine", [1, 1 / 2, cosine(15 / 16)]),
        ("linear", [1, 1 / 2, 1 / 16]),
        ("tail", [1, 1, 1 / 8]),
    ],
)
def test_schedules(schedule, rates):
    """Of all updates, whatever the number of batches that they are made on."""
    config = engine.small_config().optimizer
    config.learning_rate, config.warmup_steps, config.schedule = 1.0, 4, schedule
    rate = learning_rate(config, 20)
    np.testing.assert_allclose([rate(1), rate(2), rate(4)], [0.25, 0.5, 1.0])
    np.testing.assert_allclose([rate(5), rate(13), rate(20)], rates, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_decay_as_hugging_faces(schedule, warmup):
    options = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
    rate, optimizer = learning_rate(options, 10), torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = transformers.get_scheduler(schedule, optimizer, warmup, 10)
    for n in range(1, 11):
        if n > warmup:
            assert float(rate(n)) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        theirs.step()
    assert rate(10) > 0.01


def test_an_unknown_method_is_refused():
    config = engine.small_config()
    config.method = "grop"
    with pytest.raises(ValueError, match="did you mean 'grpo'"):
        make_method(config)
