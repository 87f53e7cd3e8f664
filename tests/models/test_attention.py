"""Kernels against plain attention: splash, interpreted; cuDNN's, where it is installed."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rdbcl_jax.models import attention_cudnn, attention_splash
from rdbcl_jax.models.attention import Block, attend, resolve
from rdbcl_jax.models.layers import inverse_frequencies
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.planning.chips import topology_of
from rdbcl_jax.sharding import make_mesh
from tests.models.contract import pair, processed
from tests.models.oracle import worst
from tests.models.qwen import FAMILIES

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


def responses(steps):
    prompt = np.ones((4, 140), bool)
    prompt[0, :37] = False
    mask = np.arange(steps) < RNG.integers(1, steps, (4, 3))[..., None]
    return normal(4, 3, steps, 4, 24), (block(prompt), block(mask, causal=True)), mask


CASES = {
    "causal": sequences(True),
    "whole images": sequences(False),
    "responses after their prompt": responses(150),
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

    assert attention_splash.serves(query, blocks, mesh)
    for found, expected in zip(
        run(backend="splash_interpret", mesh=mesh), run(backend="xla"), strict=True
    ):
        assert worst(found, expected) <= 1e-5


def test_short_and_foreign_shapes_are_left_to_xla():
    mask = np.ones((2, 3, 1), bool)
    cache = block(np.ones((2, 3, 200), bool))
    assert not attention_splash.serves(normal(2, 3, 1, 4, 24), (cache, block(mask, causal=True)))
    query, blocks, _ = CASES["causal"]
    assert not attention_splash.serves(query[:3], blocks, make_mesh(2, 2, 2))


def test_an_unknown_backend_is_an_error():
    query, blocks, _ = CASES["causal"]
    with pytest.raises(ValueError, match="attention backend is 'flash', expected one of"):
        attend(query, blocks, backend="flash")


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("gpu", "8.0", "cudnn"),
        ("gpu", "7.5", "xla"),
        ("gpu", "gfx90a", "xla"),
        ("tpu", "", "splash"),
    ],
)
def test_auto_takes_the_kernel_that_the_device_has(platform, capability, expected):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    mesh = types.SimpleNamespace(devices=np.array([device], object))
    assert resolve("auto", mesh) == expected


def test_auto_is_xla_where_there_is_no_tpu():
    query, blocks, _ = CASES["causal"]
    jaxpr = str(jax.make_jaxpr(lambda q: attend(q, blocks, backend="auto"))(query))
    assert "pallas_call" not in jaxpr


@pytest.mark.parametrize("family", FAMILIES)
def test_models_run_on_splash(family):
    models = pair(family)
    model = dataclasses.replace(models.model, attention="splash_interpret")
    prompts = model.prepare(**processed(family, ([80, (12, 16), 10], "left"), ([150], "left")))
    tokens = RNG.integers(0, 90, (2, 2, 140)).astype(np.int32)
    mask = np.arange(140) < np.array([[140, 7], [99, 130]])[..., None]

    def hidden(model):
        return jax.jit(model.response_hidden)(models.params, prompts, tokens, mask)

    images = prompts.model_inputs.images
    assert str(jax.make_jaxpr(model.visual_tokens)(models.params, images)).count("pallas")
    assert worst(hidden(model), hidden(models.model), mask) <= 1e-5


@pytest.mark.tpu
def test_splash_compiles_for_a_tpu_mesh():
    mesh = make_mesh(1, 4, 2, devices=topology_of("v5e:2x4").devices)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    def kernels(query, *blocks):
        """Of the gradient, for blocks of (shape, width, causal)."""

        def loss(query, arrays, masks):
            each = zip(arrays, masks, blocks, strict=True)
            placed = tuple(Block(k, v, mask, causal) for (k, v), mask, (*_, causal) in each)
            return attend(query, placed, backend="auto", mesh=mesh).astype(jnp.float32).sum()

        arrays = [(array(*shape, 2, width),) * 2 for shape, width, _ in blocks]
        masks = [array(*shape, dtype=bool) for shape, *_ in blocks]
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(array(*query), arrays, masks)
        return lowered.compile().as_text().count("tpu_custom_call")

    prompts, responses = (4, 700), (4, 8, 511)
    assert kernels((*prompts, 8, 128), (prompts, 128, True)) >= 3  # forward, and two backward
    assert kernels((4, 2, 300, 2, 80), ((4, 2, 300), 80, False)) >= 3
    assert kernels((*responses, 8, 128), (prompts, 128, False), (responses, 128, True)) >= 3


# ------------------------------------------------------------------------------ cuDNN


def has_cudnn():
    try:
        import jax_cuda13_plugin._versions
    except ImportError:
        return False
    return jax_cuda13_plugin._versions.cudnn_get_version() > 0


def rows_of_every_kind(causal):
    """Padding on the left, on the right, in between, none at all, and nothing but padding."""
    mask = np.ones((5, 200), bool)
    mask[0, :30] = mask[1, 170:] = mask[2, ::3] = mask[4] = False
    return normal(5, 200, 4, 24), (block(mask, causal=causal),), mask


CUDNN_CASES = {
    "causal": rows_of_every_kind(True),
    "whole images": rows_of_every_kind(False),
    "responses after their prompt": CASES["responses after their prompt"],
    "an odd number of tokens": responses(149),
}


def cudnn_and_plain(name, dtype, **options):
    """Outputs and gradients of both."""
    query, blocks, mask = CUDNN_CASES[name]
    arrays = jax.tree.map(lambda a: a.astype(dtype), (query, [(b.key, b.value) for b in blocks]))
    weights = normal(*query.shape) * mask[..., None, None]

    def run(attention):
        def loss(query, pairs):
            placed = zip(blocks, pairs, strict=True)
            out = attention(query, tuple(b._replace(key=k, value=v) for b, (k, v) in placed))
            return jnp.sum(out.astype(jnp.float32) * weights), out

        (dquery, pairs), out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*arrays)
        # an empty row's gradients have no meaning: nothing may read it
        own = [g * mask[..., None, None] for g in (out, dquery, *pairs[-1])]
        real = [b.mask[..., None, None] for b in blocks[:-1]]
        return own + [g * m for m, pair in zip(real, pairs[:-1], strict=True) for g in pair]

    found = run(lambda query, blocks: attention_cudnn.attend(query, blocks, **options))
    return zip(found, run(attend), strict=True)


@pytest.mark.parametrize("name", CUDNN_CASES)
def test_rows_are_laid_out_for_cudnn_and_back(name):
    """All but the kernel itself, whose place JAX's own attention takes."""
    for found, expected in cudnn_and_plain(name, jnp.float32, implementation="xla"):
        assert np.isfinite(found).all()
        assert worst(found, expected) <= 1e-5


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", CUDNN_CASES)
def test_cudnn_is_plain_attention(name):
    for found, expected in cudnn_and_plain(name, jnp.bfloat16):
        assert np.isfinite(np.asarray(found, np.float32)).all()
        assert worst(found, expected) <= 2e-2  # bfloat16 has 8 bits


@pytest.mark.skipif(not has_cudnn(), reason="needs jax[cuda13], but no GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_models_lower_to_cudnn(family):
    """Lowering only: what is beside the kernel is tested above, the kernel on a GPU."""
    config = pair(family).model.config  # with heads as wide as cuDNN wants them
    vision = dataclasses.replace(config.vision, heads=3)
    frequencies = tuple(inverse_frequencies(16, 1e4).tolist())
    rope = dataclasses.replace(config.text.rope, frequencies=frequencies)
    sections = {"mrope_section": (4, 2, 2), "rope": rope}
    text = dataclasses.replace(config.text, head_dim=16, **sections)
    config = dataclasses.replace(config, vision=vision, text=text)
    model = QwenVL(config, "bfloat16", attention="cudnn")
    prompts = model.prepare(**processed(family, ([80, (12, 16), 10], "left"), ([150], "left")))

    def calls(run):
        traced = jax.jit(run).trace(model.abstract_params(), prompts)
        return traced.lower(lowering_platforms=("cuda",)).as_text().count("@__cudnn$fmha")

    def loss(params, prompts):
        return model.prefill(params, prompts)[0].sum()

    def of_responses(params, prompts):
        tokens = jnp.zeros((len(prompts.tokens), 2, 140), jnp.int32)
        return model.response_hidden(params, prompts, tokens, tokens == 0).sum()

    assert calls(model.prefill) == 2  # in the scans over the vision tower and the decoder
    assert calls(jax.grad(loss)) == 4  # and in those of the backward pass
    assert calls(jax.grad(of_responses)) == 6  # the same again for responses


@pytest.mark.skipif(has_cudnn(), reason="cuDNN is installed")
def test_cudnn_where_there_is_none_is_an_error():
    query, (own,), _ = CASES["causal"]
    half = [a.astype(jnp.bfloat16) for a in (query, own.key, own.value)]
    own = own._replace(key=half[1], value=half[2])
    with pytest.raises(ValueError, match="needs an NVIDIA GPU and jax"):
        attend(half[0], (own,), backend="cudnn")


def test_cudnn_leaves_the_rest_to_xla():
    query, blocks, _ = CASES["responses after their prompt"]
    half = query.astype(jnp.bfloat16)
    assert attention_cudnn.serves(half, blocks)  # most of an update
    token = block(np.ones((4, 3, 1), bool), causal=True)
    assert not attention_cudnn.serves(half[:, :, :1], (*blocks[:1], token))
    query, blocks, _ = CASES["causal"]
    half = query.astype(jnp.bfloat16)
    assert attention_cudnn.serves(half, blocks) and not attention_cudnn.serves(query, blocks)
    assert not attention_cudnn.serves(half[:, :7], (block(np.ones((4, 7), bool), causal=True),))
