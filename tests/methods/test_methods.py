"""Each method's formula, against numbers worked out by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import default_config
from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.sft import negative_log_likelihood


def method(name, **changes):
    config = default_config()
    config.method = name
    config.update_from_flattened_dict(changes)
    return make_method(config)


@pytest.fixture
def batch():
    """Two prompts, two rollouts each, four tokens: two of reasoning, one tag, one answer."""
    shape = (2, 2, 4)
    spans = jnp.broadcast_to(
        jnp.array([[True, True, False, False], [False, False, False, True]])[:, None, None],
        (2, *shape),
    )
    fields = {f.name: None for f in dataclasses.fields(TrainBatch)}
    reference = jnp.log(jnp.array([0.5, 0.5, 0.1, 0.8]))
    return TrainBatch(
        **{
            **fields,
            "mask": jnp.ones(shape, bool),
            "reasoning_mask": spans[0],
            "answer_mask": spans[1],
            "advantages": jnp.zeros(shape[:2]),
            "reference_logps": jnp.broadcast_to(reference, shape),
        }
    )


# probabilities under the policy that sampled; the second rollout's reasoning has moved away
POLICY = jnp.log(jnp.array([[[0.5, 0.5, 0.1, 0.4], [1.0, 1.0, 0.1, 0.8]]] * 2))


def test_grpo_gives_every_sample_the_same_coefficient(batch):
    beta, signals = method("grpo", **{"kl.beta": 0.3}).kl_coefficients(batch, POLICY)
    np.testing.assert_allclose(beta, np.full((2, 2), 0.3), rtol=1e-6)
    assert signals == {}


def test_grpo_without_kl_needs_no_reference():
    assert method("grpo", **{"kl.beta": 0.0}).kl_coefficients is None


@pytest.mark.parametrize(
    "level,kind,expected",
    [
        ("reasoning", "ratio", [1.0, 0.5]),  # exp(mean log(0.5 / p))
        ("answer", "ratio", [2.0, 1.0]),
        ("response", "ratio", [2 ** (1 / 3), 0.25 ** (1 / 3)]),
        ("reasoning", "confidence", [0.5, 0.5]),
        ("answer", "confidence", [0.8, 0.8]),
    ],
)
def test_rdbcl_portability(batch, level, kind, expected):
    chosen = method("rdbcl", **{"portability.level": level, "portability.kind": kind})
    _, signals = chosen.kl_coefficients(batch, POLICY)
    np.testing.assert_allclose(signals["rp"], [expected] * 2, rtol=1e-5)


def test_rdbcl_anchors_what_carries_over_and_relaxes_the_rest(batch):
    options = {"portability.beta_min": 0.1, "portability.beta_max": 0.5}
    beta, _ = method("rdbcl", **options).kl_coefficients(batch, POLICY)
    # RP is 1 and 0.5, twice each: z = ±1
    up = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(beta, [[0.1 + 0.4 * up, 0.1 + 0.4 * (1 - up)]] * 2, rtol=1e-5)
    clipped, _ = method("rdbcl", **options, **{"portability.mapping": "clip"}).kl_coefficients(
        batch, POLICY
    )
    np.testing.assert_allclose(clipped, [[0.5, 0.3]] * 2, rtol=1e-5)


def test_advantages_are_those_of_the_group():
    found = method("grpo").advantages(jnp.array([[1.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(
        found, [[0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)], [0, 0]], rtol=1e-5
    )
    plain = method("grpo", **{"loss.advantage_scale": "none"})
    np.testing.assert_allclose(plain.advantages(jnp.array([[1.0, 0.0]])), [[0.5, -0.5]])


def test_sft_loss_is_the_mean_over_all_tokens():
    mask = jnp.array([[True, True, True], [True, False, False]])
    logps = jnp.array([[-1.0, -2.0, -3.0], [-6.0, jnp.nan, -jnp.inf]])
    terms = negative_log_likelihood(logps, None, None, mask)
    assert terms.loss_sum / terms.normaliser == 3.0
