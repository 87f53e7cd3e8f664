"""The same numbers, to rounding, when the batch is spread over eight devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rdbcl_jax import (
    group_advantages,
    kl_coefficients,
    policy_loss,
    reasoning_portability,
    shuffle_kl_coefficients,
    token_logprobs,
)
from rdbcl_jax.sharding import gathered_once, make_mesh

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
B, T, D, V = 16, 12, 8, 64


def sharding(*axes, shape=(8,), names=("data",)):
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    return NamedSharding(mesh, PartitionSpec(*axes))


def spread(tree):
    return jax.device_put(tree, sharding("data"))


def assert_same(function, *args):
    expected, actual = jax.jit(function)(*args), jax.jit(function)(*spread(args))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected
    )


def draw():
    rng = np.random.default_rng(0)
    logps = np.float32(-rng.exponential(1.0, (B, T)))
    mask = np.arange(T) < rng.integers(0, T, B)[:, None]
    reference = np.float32(logps + rng.normal(0, 0.5, (B, T)))
    return logps, reference, mask


@pytest.mark.parametrize("mapping", ["sigmoid", "clip", "minmax", "rank", "constant"])
def test_coefficients_use_the_global_batch(mapping):
    # Portability sorted over the devices: statistics per device would differ wildly.
    rp = np.linspace(0.1, 1.3, B, dtype=np.float32)
    valid = np.arange(B) % 5 != 0
    assert_same(
        lambda rp, valid: kl_coefficients(
            rp, beta_min=0.01, beta_max=0.1, mapping=mapping, valid=valid
        ),
        rp,
        valid,
    )


def test_portability_loss_and_gradient():
    logps, reference, mask = draw()
    advantages = np.linspace(-1, 1, B, dtype=np.float32)

    def step(logps, reference, mask, advantages):
        rp = reasoning_portability(logps, reference, mask)
        beta = kl_coefficients(rp, beta_min=0.01, beta_max=0.1, valid=mask.any(-1))

        def loss(x):
            kl = {"reference_logps": reference, "kl_coef": beta, "kl_kind": "k3_bounded"}
            return policy_loss(x, logps, advantages, mask, **kl)

        return jax.value_and_grad(loss, has_aux=True)(logps - 0.1)

    assert_same(step, logps, reference, mask, advantages)


def test_advantages_and_shuffle():
    rewards = np.random.default_rng(0).random((B, 4), np.float32)
    assert_same(group_advantages, rewards)
    assert_same(partial(shuffle_kl_coefficients, jax.random.key(0)), rewards[:, 0])


def head_loss(hidden, lm_head, tokens):
    logps, entropy = token_logprobs(hidden, lm_head, tokens, chunk_size=48, return_entropy=True)
    return jnp.exp(logps).sum() + 0.1 * entropy.sum()


@pytest.mark.parametrize("tensor", [1, 2])
def test_log_probs_keep_every_device_busy(tensor):
    """Tokens stay where they are: sums over devices, and no array of tokens moves."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (B, T, D))
    lm_head = jax.random.normal(keys[1], (D, V))
    tokens = jax.random.randint(keys[2], (B, T), 0, V)
    mesh = {"shape": (8 // tensor, tensor), "names": ("data", "tensor")}
    rows, columns = sharding("data", **mesh), sharding(None, "tensor", **mesh)
    gradient = jax.jit(jax.value_and_grad(head_loss, (0, 1)))
    placed = [jax.device_put(x, s) for x, s in ((hidden, rows), (lm_head, columns), (tokens, rows))]
    expected, actual = gradient(hidden, lm_head, tokens), gradient(*placed)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), actual, expected
    )
    program = gradient.lower(*placed).compile().as_text()
    assert not re.findall(r" (?:all-gather|all-to-all|collective-permute)\(", program)


def test_a_matrix_is_gathered_once_and_narrow_and_its_gradient_is_split():
    mesh = make_mesh(data=1, fsdp=8)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    rng = np.random.default_rng(0)
    kernel, x = (np.float32(rng.normal(size=shape)) for shape in ((16, 8), (8, 16)))

    def loss(kernel, x, gather=True):
        if gather:
            kernel = gathered_once({"kernel": kernel}, {"kernel": split}, "bfloat16")["kernel"]
        kernel, x = kernel.astype("bfloat16"), x.astype("bfloat16")
        return ((x @ kernel) ** 2 + (2 * x @ kernel)).astype("float32").sum()

    placed = jax.device_put((kernel, x), split)
    gradient = jax.jit(jax.grad(loss))
    found, expected = gradient(*placed), jax.grad(loss)(kernel, x, gather=False)
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.2)
    assert found.sharding.is_equivalent_to(split, 2)
    lowered = gradient.lower(*placed)
    whole = r"sharding_constraint .* <@mesh, \[\{\}, \{\}\]> : tensor<16x8x(\w+)>"
    assert set(re.findall(whole, lowered.as_text())) == {"bf16"}
    assert len(re.findall(r" all-gather(?:-start)?\(", lowered.compile().as_text())) == 1
