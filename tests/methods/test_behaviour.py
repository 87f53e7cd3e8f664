"""What one update of each method does to a policy: who gains, and who is held back."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.grpo import VARIANTS
from rdbcl_jax.methods.revisions import memorising, replenished
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.rollout.scored import Responses, score_rollouts
from rdbcl_jax.sharding import make_mesh, replicated
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.training.experience import demonstrated
from rdbcl_jax.training.fisher import estimate_fisher, squared_gradients
from rdbcl_jax.training.logprobs import compiled_logprobs
from rdbcl_jax.training.references import with_policy
from rdbcl_jax.training.state import TrainState
from rdbcl_jax.training.update import Consolidation, UpdateConfig, make_update
from tests import engine

pytestmark = pytest.mark.slow


def chosen(name, **changes):
    config = engine.small_config()
    config.method = name
    config.rollout.samples = 1 if name == "mssr" else 4
    config.update_from_flattened_dict(changes)
    return make_method(config)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return engine.load(engine.write_random_model(tmp_path_factory.mktemp("model")))


def update(policy, params, batch, method, consolidation=None, rate=0.05, **options):
    optimizer = optax.sgd(rate)
    step = make_update(policy.model, optimizer, method, UpdateConfig(chunk_size=64, **options))
    state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
    return step(state, policy.frozen, batch, consolidation)


def likelihoods(policy, params, batch):
    logps = compiled_logprobs(
        policy.model,
        params,
        batch.prompts,
        batch.tokens,
        batch.mask,
        temperature=1.0,
        chunk_size=64,
    )
    return np.asarray(jnp.where(batch.mask, logps, 0).sum(-1))


def scored_responses(loaded, records):
    policy, params = loaded
    prompts, rollouts = engine.rollout(policy, params, max_tokens=16)
    return score_rollouts(
        Responses(jax.device_get(prompts), prompts, rollouts), records, policy, score_texts
    )


def revised(policy, scored, revise):
    """By a revision that draws nothing more."""
    return revise(scored, types.SimpleNamespace(policy=policy))


def gains(policy, params, batch, method, **options):
    """What the log-likelihood of each response gains by one update, [P, G]."""
    state, *_ = update(policy, params, batch, method, rate=1e-2, **options)
    before, after = (likelihoods(policy, p, batch) for p in (params, state.params))
    return after - before


@pytest.fixture(scope="module")
def half_right(loaded):
    """A batch in which every second response is right."""
    right = jnp.broadcast_to(jnp.arange(4) % 2, (8, 4)).astype(jnp.float32)
    return engine.train_batch(*engine.rollout(*loaded), rewards=right, accuracies=right)


def test_right_responses_gain_on_wrong_ones(loaded, half_right):
    found = gains(*loaded, half_right, chosen("grpo", **{"kl.beta": 0.0}))
    assert found[:, 1::2].mean() > found[:, ::2].mean()


# those that have grpo's loss are left out
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in ("grpo_d", "vas", "one_shot")])
def test_each_loss_pulls_right_responses_up_and_wrong_ones_down(half_right, name):
    batch, method = half_right, chosen(name, **{"kl.beta": 0.0})
    targets = method.targets(with_policy(batch, batch.sampler_logps), batch.sampler_logps, None)

    def loss(logps):
        options = {"reference_logps": batch.reference_logps, "kl_coef": targets.kl_coef}
        return method.loss(logps, None, targets.advantages, batch.mask, **options).loss_sum

    pull = -np.asarray(jax.jit(jax.grad(loss))(batch.sampler_logps)).sum(-1)
    said = np.asarray(batch.mask).any(-1)  # at least one token
    assert (pull[:, 1::2] > 0)[said[:, 1::2]].all() and (pull[:, ::2] < 0)[said[:, ::2]].all()


@pytest.mark.parametrize("control,sign", [("none", 1), ("inverted", -1)])
def test_rdbcl_holds_what_carries_over_and_lets_the_rest_go(loaded, control, sign):
    prompts, rollouts = engine.rollout(*loaded)
    portable = jnp.array([True, True, False, False])[:, None]
    batch = engine.train_batch(
        prompts,
        rollouts,
        rewards=jnp.zeros((8, 4)).at[0, 0].set(1e-7),  # without a signal there is no step
        reference_logps=rollouts.logps - 0.3,  # all have moved as far, and are pulled back
        previous_logps=jnp.where(portable, rollouts.logps, rollouts.logps - 1),
    )
    options = {"portability.beta_max": 1.0, "portability.mapping": "minmax"}
    options["loss.advantage_scale"] = "none"
    found = gains(*loaded, batch, chosen("rdbcl", **options, **{"portability.control": control}))
    held, free = -found[:, :2].mean(), -found[:, 2:].mean()
    assert sign * (held - free) > 0


def test_mssr_raises_what_was_not_expected(loaded):
    """All are right; of half of the prompts that was known. No response has a group."""
    known = jnp.tile(jnp.array([0.9, 0.1]), 4)
    batch = engine.train_batch(
        *engine.rollout(*loaded, samples=1),
        rewards=jnp.ones((8, 1)),
        accuracies=jnp.ones((8, 1)),
        prompt_values=known,
    )
    found = gains(*loaded, batch, chosen("mssr", **{"kl.beta": 0.0, "mssr.adaptive": False}))
    assert found[1::2].mean() > 0 > found[::2].mean()


def test_rapo_raises_what_stayed_near_the_previous_policy(loaded):
    prompts, rollouts = engine.rollout(*loaded)
    near = jnp.array([True, False, True, False])[:, None]
    batch = engine.train_batch(
        prompts,
        rollouts,
        rewards=jnp.ones((8, 4)),  # the task's own reward says nothing
        previous_logps=jnp.where(near, rollouts.logps, rollouts.logps - 1),
    )
    found = gains(*loaded, batch, chosen("rapo", **{"kl.beta": 0.0}))
    assert found[:, ::2].mean() > found[:, 1::2].mean()


@pytest.mark.parametrize("target", ["reasoning", "answer"])
def test_sft_raises_the_demonstrations(loaded, target):
    policy, _ = loaded
    options = {"demonstrations.target": target, "demonstrations.no_reasoning": "next"}
    method = chosen("sft", **options)
    records = [digits_suite.make_record("sum", "train", i, 0) for i in range(8)]
    texts = [method.demonstration(record) for record in records]
    host = policy.encoder.encode_supervised(records, texts, np.arange(8))
    responses = demonstrated(host, policy)
    scored = score_rollouts(responses, records, policy, score_texts)
    batch = engine.train_batch(responses.prompts, responses.all, **scored.columns(policy))
    assert (gains(*loaded, batch, method) > 0).all()


def test_dyme_moves_an_all_wrong_group_towards_the_reference_response(loaded):
    policy, params = loaded
    records = [digits_suite.make_record("sum", "train", i, 0) for i in range(8)]
    method = chosen("dyme")
    scored = scored_responses(loaded, engine.records())
    scored = dataclasses.replace(scored, records=records)
    changed = revised(policy, scored, memorising(method.demonstration))
    assert changed.memorised[:, 0].all() and not changed.memorised[:, 1:].any()
    assert (changed.host.tokens[:, 1:] == scored.host.tokens[:, 1:]).all()
    texts = policy.texts(changed.host.tokens[:, 0], changed.host.mask[:, 0])
    assert [t.strip() for t in texts] == [digits_suite.make_trace(r) for r in records]
    whole, columns = changed.responses.all, changed.columns(policy)
    batch = engine.train_batch(changed.responses.prompts, whole, **columns)
    state, metrics, _ = update(policy, params, batch, method)
    before, after = (likelihoods(policy, p, batch) for p in (params, state.params))
    assert (after[:, 0] > before[:, 0]).all()
    # given responses were not sampled: they say nothing about the sampler
    assert metrics["sampler/logp_difference/max"] < 1e-4


def test_a_group_with_a_right_answer_is_not_memorised(loaded):
    scored = scored_responses(loaded, engine.records())
    accuracy = np.zeros(32)
    accuracy[5] = 1  # of the second prompt
    scored = dataclasses.replace(
        scored, scores=dataclasses.replace(scored.scores, accuracy=accuracy)
    )
    changed = revised(loaded[0], scored, memorising(lambda record: "sum 3"))
    assert changed.memorised[:, 0].tolist() == [True, False, *[True] * 6]


def test_dynamic_sampling_keeps_what_informs(loaded):
    policy, _ = loaded
    scored = scored_responses(loaded, engine.records())

    def with_rewards(scored, informative, offset):
        rewards = np.full((8, 4), float(offset))
        rewards[informative, 0] += 1
        ids = scored.responses.host_prompts.record_ids + offset
        prompts = dataclasses.replace(scored.responses.host_prompts, record_ids=ids)
        responses = dataclasses.replace(scored.responses, host_prompts=prompts)
        scores = dataclasses.replace(scored.scores, total=rewards.ravel())
        return dataclasses.replace(scored, responses=responses, scores=scores)

    first, second = with_rewards(scored, [1, 4], 0), with_rewards(scored, [0, 2, 3], 100)
    found = replenished(first, second, policy)
    ids = found.responses.host_prompts.record_ids.tolist()
    assert ids == [1, 4, 100, 102, 103, 0, 2, 3]
    assert found.informative.tolist() == [True] * 5 + [False] * 3
    np.testing.assert_array_equal(found.host.tokens[2], scored.host.tokens[0])
    np.testing.assert_array_equal(np.asarray(found.responses.all.tokens), found.host.tokens)
    enough = replenished(with_rewards(scored, range(7), 0), second, policy)
    assert enough.responses.host_prompts.record_ids.tolist() == [*range(7), 100]
    assert found.records[0] is scored.records[1] and len(found.texts) == 32


def test_shuffle_r1_keeps_half_of_the_responses_and_draws_their_contrast(loaded):
    policy, _ = loaded
    scored = scored_responses(loaded, engine.records())
    rewards = np.zeros((8, 4))
    rewards[3] = [0, 3, 1, 2]
    scored = dataclasses.replace(
        scored, scores=dataclasses.replace(scored.scores, total=rewards.ravel())
    )
    draws = types.SimpleNamespace(policy=policy, rng=np.random.default_rng(0))
    found = chosen("shuffle_r1").revise(scored, draws)
    assert found.shape == (8, 2) and found.texts[6:8] == [scored.texts[13], scored.texts[12]]
    np.testing.assert_array_equal(found.host.tokens[3], scored.host.tokens[3, [1, 0]])
    np.testing.assert_array_equal(np.asarray(found.responses.all.tokens), found.host.tokens)
    # its only pair with contrast, in each of eight passes over eight pairs
    edge = 1.5 / (np.std(rewards[3], ddof=1) + 1e-4)
    expected = np.zeros((8, 2))
    expected[3] = [8 * edge, -8 * edge]
    np.testing.assert_allclose(found.given["advantage"], expected, rtol=1e-5)
    np.testing.assert_allclose(found.columns(policy)["given"]["advantage"], expected, rtol=1e-5)


def test_reinforce_ada_puts_rounds_together_and_keeps_both_kinds(loaded):
    policy, _ = loaded
    first, second = (
        dataclasses.replace(s, scores=dataclasses.replace(s.scores, accuracy=a, total=a))
        for s, a in zip(
            (scored_responses(loaded, engine.records()),) * 2,
            (np.zeros(32), np.arange(32) % 4 == 2.0),
            strict=True,
        )
    )
    asked = []

    class Draws:
        def __init__(self):
            self.policy = policy

        def again(self, scored, wanted):
            asked.append(wanted.tolist())
            return second, np.arange(8)

    options = {"rollout.samples": 4, "reinforce_ada.keep": 2, "reinforce_ada.until": "pos"}
    found = chosen("reinforce_ada", **options).revise(first, Draws())
    assert asked == [[True] * 8]  # every prompt has one right response then
    assert found.shape == (8, 2)
    assert found.scores.accuracy.tolist() == [1, 0] * 8
    np.testing.assert_array_equal(found.host.tokens[0], second.host.tokens[0, [2, 0]])
    np.testing.assert_allclose(found.given["advantage"], [[7 / 8, -1 / 8]] * 8, rtol=1e-6)


def test_gdpo_normalises_each_reward_before_the_sum(loaded):
    scored = scored_responses(loaded, engine.records())
    one = np.tile([1.0, 0.0, 0.0, 1.0], 8)
    small = np.tile([0.0, 0.1, 0.0, 0.1], 8)
    small[4:8] = np.nan
    scores = dataclasses.replace(scored.scores, components={"format": one, "accuracy": small})
    method = chosen("gdpo", **{"rewards.weights": {"format": 0.2, "accuracy": 1.0, "brief": 0.0}})
    found = method.revise(dataclasses.replace(scored, scores=scores), None).given["summed"]
    # as much as the other, whatever its spread
    by_one = (one[:4] - 0.5) / (np.std(one[:4], ddof=1) + 1e-4)
    by_small = (small[:4] - 0.05) / (np.std(small[:4], ddof=1) + 1e-4)
    np.testing.assert_allclose(found[0], 0.2 * by_one + by_small, rtol=1e-4)
    np.testing.assert_allclose(found[1], 0.2 * by_one, rtol=1e-4)


def test_lwf_learns_the_previous_policys_responses(loaded):
    policy, params = loaded
    method = chosen("lwf", **{"lwf.weight": 2.0})
    prompts, rollouts = engine.rollout(policy, params)
    _, others = engine.rollout(policy, params, samples=1, key=9)
    responses = Responses(jax.device_get(prompts), prompts, rollouts, others)
    scored = score_rollouts(responses, engine.records(), policy, score_texts)
    columns = scored.columns(policy)
    assert columns["demonstrated"].tolist() == [[False] * 4 + [True]] * 8
    assert np.isnan(columns["rewards"][:, 4]).all()
    columns["rewards"][:, :4] = 0  # nothing to learn from the policy's own
    batch = engine.train_batch(prompts, responses.all, **columns)
    state, _, samples = update(policy, params, batch, method, rate=1e-2)
    np.testing.assert_allclose(samples["advantage"], [[0, 0, 0, 0, 2]] * 8)
    before, after = (likelihoods(policy, p, batch) for p in (params, state.params))
    assert after[:, 4].sum() > before[:, 4].sum()


def test_ewc_pulls_back_what_mattered(loaded):
    policy, params = loaded
    method = chosen("ewc", **{"ewc.strength": 3.0})
    prompts, rollouts = engine.rollout(policy, params)
    batch = engine.train_batch(prompts, rollouts, rewards=jnp.zeros((8, 4)))
    moved = jax.tree.map(lambda p: p + 0.01, params)
    fisher = jax.tree.map(lambda p: jnp.full(p.shape, 2.0), params)
    state, metrics, _ = update(
        policy, moved, batch, method, Consolidation(params, fisher), rate=0.1
    )
    count = sum(p.size for p in jax.tree.leaves(params))
    # λ/2 Σ F d² and d − rate λ F d
    np.testing.assert_allclose(metrics["consolidation"], 1.5 * 2 * 0.01**2 * count, rtol=1e-3)
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new - old, 0.01 * (1 - 0.6), atol=1e-5),
        state.params,
        params,
    )


def test_every_record_counts_once_in_the_fisher_information_whatever_the_batches(loaded):
    """Five records: a batch of four and one that is filled, or one over eight devices."""
    policy, params = loaded
    sampling = sampling_of(policy, engine.small_config().rollout, greedy=True)
    sampling = dataclasses.replace(sampling, max_tokens=4)
    options = {"chunk_size": 64, "key": jax.random.key(0), "sampling": sampling}
    records = engine.records(5)
    one = estimate_fisher(policy, params, records, batch_size=4, **options)
    mesh = make_mesh(data=8)
    shared = dataclasses.replace(
        policy, mesh=mesh, model=dataclasses.replace(policy.model, mesh=mesh)
    )
    there = jax.device_put(params, replicated(mesh))
    many = estimate_fisher(shared, there, records, batch_size=16, **options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max()),
        many,
        one,
    )


def test_fisher_is_the_sum_of_squared_gradients_of_sequences(loaded):
    policy, params = loaded
    prompts, rollouts = engine.rollout(policy, params, samples=1, count=4)
    options = {"temperature": 1.0, "chunk_size": 64}
    counted = np.array([True, True, False, True])  # the third only fills the batch
    found = squared_gradients(
        policy.model, params, policy.frozen, prompts, rollouts, counted, **options
    )

    def log_likelihood(params, row):
        logps = compiled_logprobs(
            policy.model, params, prompts, rollouts.tokens, rollouts.mask, **options
        )
        return jnp.where(rollouts.mask, logps, 0)[row].sum()

    grads = [jax.grad(log_likelihood)(params, row) for row in (0, 1, 3)]
    expected = jax.tree.map(lambda *g: sum(x**2 for x in g), *grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=2e-3, atol=1e-5 * np.abs(b).max() + 1e-9
        ),
        found,
        expected,
    )
