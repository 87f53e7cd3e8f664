"""The splash kernel, interpreted, against plain attention: values and gradients, also on a mesh."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import FAMILIES, pair, processed, worst

from rdbcl_jax.models import splash
from rdbcl_jax.models.attention import Block, attend
from rdbcl_jax.sharding import make_mesh

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def block(mask, heads=2, dim=24, causal=False):
    return Block(
        normal(*mask.shape, heads, dim), normal(*mask.shape, heads, dim), jnp.asarray(mask), causal
    )


def sequences(causal):
    mask = np.ones((4, 200), bool)
    mask[0, :30] = mask[1, 170:] = False
    return normal(4, 200, 4, 24), (block(mask, causal=causal),), mask


def responses():
    prompt = np.ones((4, 140), bool)
    prompt[0, :37] = False
    mask = np.arange(150) < RNG.integers(1, 150, (4, 3))[..., None]
    return normal(4, 3, 150, 4, 24), (block(prompt), block(mask, causal=True)), mask


CASES = {
    "causal": sequences(True),
    "whole images": sequences(False),
    "responses after their prompt": responses(),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sizes", [None, (2, 2, 2)])
def test_splash_is_plain_attention(name, sizes):
    query, blocks, mask = CASES[name]
    mesh = None if sizes is None else make_mesh(*sizes)
    weights = normal(*query.shape) * mask[..., None, None]

    def run(**options):
        def loss(query, arrays):
            placed = tuple(b._replace(key=k, value=v) for b, (k, v) in zip(blocks, arrays))  # noqa: B905
            out = attend(query, placed, **options)
            return jnp.sum(out * weights), out

        arrays = [(b.key, b.value) for b in blocks]
        grads, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(query, arrays)
        return [out * mask[..., None, None], *jax.tree.leaves(grads)]

    assert splash.serves(query, blocks, mesh)
    for found, expected in zip(
        run(backend="splash_interpret", mesh=mesh), run(backend="xla"), strict=True
    ):
        assert worst(found, expected) <= 1e-5


def test_short_and_foreign_shapes_are_left_to_xla():
    mask = np.ones((2, 3, 1), bool)
    cache = block(np.ones((2, 3, 200), bool))
    assert not splash.serves(normal(2, 3, 1, 4, 24), (cache, block(mask, causal=True)))
    query, blocks, _ = CASES["causal"]
    assert not splash.serves(query[:3], blocks, make_mesh(2, 2, 2))


def test_an_unknown_backend_is_an_error():
    query, blocks, _ = CASES["causal"]
    with pytest.raises(ValueError, match="attention backend is 'flash', expected one of"):
        attend(query, blocks, backend="flash")


def test_auto_is_xla_where_there_is_no_tpu():
    query, blocks, _ = CASES["causal"]
    jaxpr = str(jax.make_jaxpr(lambda q: attend(q, blocks, backend="auto"))(query))
    assert "pallas_call" not in jaxpr


@pytest.mark.parametrize("family", FAMILIES)
def test_models_run_on_splash(family):
    models = pair(family)
    model = dataclasses.replace(models.model, attention="splash_interpret")
    prompts = model.prepare(**processed(([80, (12, 16), 10], "left"), ([150], "left")))
    tokens = RNG.integers(0, 90, (2, 2, 140)).astype(np.int32)
    mask = np.arange(140) < np.array([[140, 7], [99, 130]])[..., None]

    def hidden(model):
        return jax.jit(model.response_hidden)(models.params, prompts, tokens, mask)

    assert str(jax.make_jaxpr(model.visual_tokens)(models.params, prompts.images)).count("pallas")
    assert worst(hidden(model), hidden(models.model), mask) <= 1e-5


COMPILE = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from rdbcl_jax.models.attention import Block, attend
from rdbcl_jax.sharding import make_mesh

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
mesh = make_mesh(1, 4, 2, devices=topology.devices)
rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

def compiled(query, *blocks):
    def loss(query, arrays, masks):
        placed = [Block(k, v, m, c) for (k, v), m, (*_, c) in zip(arrays, masks, blocks)]
        return attend(query, tuple(placed), backend="auto", mesh=mesh).astype(jnp.float32).sum()
    arrays = [(array(*shape, 2, width), array(*shape, 2, width)) for shape, width, _ in blocks]
    masks = [array(*shape, dtype=bool) for shape, *_ in blocks]
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(array(*query), arrays, masks)
    return lowered.compile().as_text().count("tpu_custom_call")

print(
    compiled((4, 700, 8, 128), ((4, 700), 128, True)),
    compiled((4, 2, 300, 2, 80), ((4, 2, 300), 80, False)),
    compiled((4, 8, 511, 8, 128), ((4, 700), 128, False), ((4, 8, 511), 128, True)),
)
"""


@pytest.mark.slow
def test_splash_compiles_for_a_tpu_mesh():
    """Compile only: libtpu describes a pod slice to a machine that has none."""
    pytest.importorskip("libtpu")
    described = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}
    described |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    described |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    described |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    out = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env={**os.environ, **described},
        check=False,
    )
    assert out.returncode == 0, out.stderr
    kernels = [int(count) for count in out.stdout.split()]
    assert len(kernels) == 3
    assert all(count >= 3 for count in kernels)  # forward, and two in the backward pass
