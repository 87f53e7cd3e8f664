"""Averages of policies: of adapters by what they add, of other weights one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rdbcl_jax.models.averages import averaged, nearest
from rdbcl_jax.sharding import make_mesh

LAYERS, IN, OUT, RANK, SHARE = 2, 12, 9, 3, 0.2


def adapters(seed, b=1.0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(LAYERS, IN, RANK)).astype(np.float32)
    return a, (b * rng.normal(size=(LAYERS, RANK, OUT))).astype(np.float32)


def wanted(first, second):
    (a1, b1), (a2, b2) = first, second
    return SHARE * a1.astype(float) @ b1 + (1 - SHARE) * a2.astype(float) @ b2


def test_what_an_adapter_adds_after_the_first_task_is_averaged_exactly():
    """Before it B is 0: of what the task added the share is left."""
    first, second = adapters(0, b=0.0), adapters(1)
    a, b = nearest(*first, *second, SHARE)
    np.testing.assert_allclose(a @ b, (1 - SHARE) * second[0] @ second[1], rtol=1e-4, atol=1e-5)
    # as long as it was, and every column of it
    sizes = np.linalg.norm(a, axis=1)
    expected = np.linalg.norm(second[0], axis=(1, 2))[:, None] / RANK**0.5
    np.testing.assert_allclose(sizes, np.broadcast_to(expected, sizes.shape), rtol=1e-5)


def test_of_two_adapters_it_is_the_nearest_of_their_rank():
    first, second = adapters(0), adapters(1)
    a, b = nearest(*first, *second, SHARE)
    full = wanted(first, second)
    u, sizes, v = np.linalg.svd(full)
    best = (u[..., :RANK] * sizes[:, None, :RANK]) @ v[:, :RANK]
    np.testing.assert_allclose(a @ b, best, rtol=1e-4, atol=1e-5)
    one_by_one = [SHARE * x + (1 - SHARE) * y for x, y in zip(first, second, strict=True)]
    off = np.linalg.norm(one_by_one[0] @ one_by_one[1] - full)
    assert np.linalg.norm(best - full) < off


@pytest.mark.parametrize("rank", [RANK, 16])  # 16: more than the matrix has
def test_adapters_that_add_nothing_can_still_learn(rank):
    a = np.random.default_rng(0).normal(size=(IN, rank)).astype(np.float32)
    nothing = np.zeros((rank, OUT), np.float32)
    found, b = nearest(a, nothing, a, nothing, SHARE)
    assert found.shape == a.shape and not b.any() and np.isfinite(found).all()
    assert (np.linalg.norm(found, axis=0) > 0).sum() == min(rank, OUT)


def test_a_whole_policy_is_averaged_where_it_lies():
    mesh = make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec())

    def policy(seed):
        a, b = map(jax.device_put, adapters(seed), split)
        part = {"kernel": None, "bias": None, "lora_a": a, "lora_b": b}
        return {"q_proj": part, "norm": {"scale": jnp.full(4, float(seed), jnp.bfloat16)}}

    found = averaged(policy(0), policy(1), SHARE)
    assert jax.tree.structure(found) == jax.tree.structure(policy(0))
    assert (found["norm"]["scale"] == jnp.asarray(1 - SHARE, jnp.bfloat16)).all()
    a, b = found["q_proj"]["lora_a"], found["q_proj"]["lora_b"]
    assert (a.sharding, b.sharding) == split
    expected = nearest(*adapters(0), *adapters(1), SHARE)
    np.testing.assert_allclose(np.asarray(a) @ b, expected[0] @ expected[1], rtol=1e-4, atol=1e-5)
