"""The benchmarks' FLOP counts against XLA's own count of the engine's programs."""

import jax
import jax.numpy as jnp
import pytest

from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.training.logprobs import response_logprobs
from tests.benchmarks import arithmetic, ours
from tests.benchmarks.workload import TEXT, Vision, Workload

# one layer, one chunk: XLA counts the body of a loop once. Attention is next to nothing.
WORKLOAD = Workload("test", 2, 3, 24, 16, 1, 256, 512, 2, 1, 8, 1024)
LOOSE = 0.06  # norms, softmax and other elementwise work, which the arithmetic leaves out


def programs(w: Workload):
    """(prefill, log-probs, gradient of log-probs), each with the FLOPs that XLA counts."""
    model = QwenVL(ours.model_config(w))
    prompts = ours.Prompts(w, model).encode()
    tokens = jax.ShapeDtypeStruct((w.prompts, w.samples, w.response_length), jnp.int32)
    mask = jax.ShapeDtypeStruct(tokens.shape, bool)

    def logps(params, tokens, mask):
        options = {"temperature": 1.0, "chunk_size": w.chunk_size}
        return response_logprobs(model, params, prompts, tokens, mask, **options).sum()

    def count(function, *arguments):
        return jax.jit(function).lower(*arguments).cost_analysis()["flops"]

    params = model.abstract_params()
    return (
        count(lambda p: model.prefill(p, prompts)[0], params),
        count(logps, params, tokens, mask),
        count(jax.grad(logps), params, tokens, mask),
    )


@pytest.fixture(scope="module")
def counted():
    return programs(WORKLOAD)


def head(w, tokens):
    return 2 * tokens * w.width * w.vocab_size


def test_forward_flops(counted):
    assert counted[1] == pytest.approx(arithmetic.forward_flops(WORKLOAD), rel=LOOSE)


def test_prefill_flops(counted):
    layers = arithmetic.prefill_flops(WORKLOAD) - head(WORKLOAD, WORKLOAD.prompts)
    assert counted[0] == pytest.approx(layers, rel=LOOSE)


def test_update_flops(counted):
    w = WORKLOAD
    again = head(w, w.prompts * w.samples * w.response_length)  # the backward pass's own logits
    assert counted[2] - again == pytest.approx(arithmetic.update_flops(w), rel=LOOSE)


def test_picture_flops(counted):
    """A picture adds its tower's FLOPs, once for each prompt."""
    vision = Vision(1, 128, 256, 2, 16, (0,))
    w = WORKLOAD.replace(vision=vision, prompt_length=WORKLOAD.prompt_length + vision.tokens + 2)
    text = w.replace(vision=None)
    pictures = programs(w)[1] - programs(text)[1]
    assert pictures == pytest.approx(w.prompts * arithmetic.picture_flops(w), rel=LOOSE)
    assert arithmetic.forward_flops(w) - arithmetic.forward_flops(text) == (
        w.prompts * arithmetic.picture_flops(w)
    )


def test_attention_counts_the_visible_pairs(counted):
    """Eight times the head dimension adds projections and attention, nothing else."""
    wide = WORKLOAD.replace(head_dim=64)
    tokens = arithmetic.layer_tokens(wide)
    matrices = arithmetic.layer_parameters(wide) - arithmetic.layer_parameters(WORKLOAD)
    attention = programs(wide)[1] - counted[1] - 2 * tokens * matrices
    per_pair = 4 * wide.heads * (64 - 8)
    t = wide.response_length - 1
    every_pair = wide.prompts * (
        wide.prompt_length**2 + wide.samples * t * (wide.prompt_length + t)
    )
    assert arithmetic.visible_pairs(wide) < every_pair
    assert attention > per_pair * arithmetic.visible_pairs(wide)
    assert attention < 1.5 * per_pair * every_pair  # with rotary embeddings and biases


def test_parameters_are_those_of_the_model():
    for w in (WORKLOAD, *TEXT[:2]):
        params = QwenVL(ours.model_config(w)).abstract_params()["language_model"]
        assert sum(p.size for p in jax.tree.leaves(params)) == arithmetic.parameters(w)


def test_sizes_are_what_their_names_say():
    counts = {w.name: arithmetic.parameters(w) / 1e6 for w in TEXT}
    assert counts == pytest.approx({"small": 0.2, "medium": 5.2, "large": 47, "0.5B": 494}, rel=0.1)


def test_sharing_saves_what_the_token_count_says_and_nothing_of_the_head():
    w = WORKLOAD.replace(
        width=8, vocab_size=16, head_dim=1, response_length=64
    )  # no head to speak of
    naive = arithmetic.naive(w)
    share = arithmetic.update_flops(w) / arithmetic.update_flops(naive)
    assert share == pytest.approx(arithmetic.token_ratio(w), rel=0.03)
    assert arithmetic.decode_bytes(w) < arithmetic.decode_bytes(naive)
    only_head = WORKLOAD.replace(depth=0)
    assert arithmetic.update_flops(only_head) == arithmetic.update_flops(
        arithmetic.naive(only_head)
    )


def test_a_decoded_token_reads_its_share_of_the_weights_and_the_cache():
    w = WORKLOAD
    weights = arithmetic.layer_parameters(w) + w.width * w.vocab_size
    cache = 2 * w.kv_heads * w.head_dim * (2 * 24 + 6 * 8)
    assert arithmetic.decode_bytes(w) == 4 * (weights + cache) / 6
    bf16 = arithmetic.decode_bytes(w, weight_size=2, cache_size=2)
    assert bf16 == arithmetic.decode_bytes(w) / 2
