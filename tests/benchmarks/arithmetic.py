"""How many FLOPs and bytes a GRPO step needs: pure functions of a workload.

A multiplication and an addition are two FLOPs. Only matrix products count: norms, softmax and
rotary embeddings are a few per cent more. Attention counts the visible pairs (the causal half),
and the prompt counts once per group; `naive` counts a step that runs it for every response.
Work that a program repeats to save memory is not needed, so it is not counted.
"""

from __future__ import annotations

from tests.benchmarks.workload import MERGE, PATCH, TEMPORAL, WINDOW, Workload


def layer_parameters(w: Workload) -> int:
    """Entries of one decoder layer's matrices, without biases."""
    attention = 2 * w.width * w.heads * w.head_dim + 2 * w.width * w.kv_heads * w.head_dim
    return attention + 3 * w.width * w.mlp_width


def parameters(w: Workload) -> int:
    """All entries of the decoder: matrices, biases, norms, and the tied embedding once."""
    biases = (w.heads + 2 * w.kv_heads) * w.head_dim
    layer = layer_parameters(w) + biases + 2 * w.width
    return w.depth * layer + w.width + w.vocab_size * w.width


def token_ratio(w: Workload) -> float:
    """Tokens of a step with shared prompts over those of one without: (L + G·T) / (G·(L + T))."""
    shared = w.prompt_length + w.samples * w.response_length
    return shared / (w.samples * (w.prompt_length + w.response_length))


def naive(w: Workload) -> Workload:
    """The same step with P·G prompts of one response each: nothing is shared."""
    return w.replace(name=f"{w.name} naive", prompts=w.prompts * w.samples, samples=1)


def layer_tokens(w: Workload) -> int:
    """Positions that run through the layers; a response's last token is only predicted."""
    return w.prompts * (w.prompt_length + w.samples * (w.response_length - 1))


def visible_pairs(w: Workload) -> int:
    """(query, key) pairs of all attention, per head and layer."""
    l, t = w.prompt_length, w.response_length - 1
    return w.prompts * (l * (l + 1) // 2 + w.samples * (t * l + t * (t + 1) // 2))


def forward_flops(w: Workload) -> int:
    """Log-probs of every response token: the reference pass."""
    layers = 2 * layer_tokens(w) * layer_parameters(w)
    attention = 4 * visible_pairs(w) * w.heads * w.head_dim
    head = _head_flops(w, _responses(w) * w.response_length)
    return w.depth * (layers + attention) + head + w.prompts * picture_flops(w)


def picture_flops(w: Workload) -> int:
    """The vision tower on one picture."""
    v = w.vision
    if v is None:
        return 0
    patches, merged, window = v.side**2, MERGE**2 * v.width, (WINDOW // PATCH) ** 2
    full = len(v.full_attention_layers)
    keys = full * patches + (v.depth - full) * window  # of one patch, over all layers
    layer = 4 * v.width**2 + 3 * v.width * v.mlp_width
    embed = 3 * TEMPORAL * PATCH**2 * v.width
    merge = v.tokens * (merged**2 + merged * w.width)
    return 2 * (patches * (embed + v.depth * layer) + merge) + 4 * patches * keys * v.width


def update_flops(w: Workload) -> int:
    """Forward, and backward for parameters and for activations: three times the forward pass."""
    return 3 * forward_flops(w)


def generate_flops(w: Workload) -> int:
    """Prefill and decoding; a group's first tokens come from one distribution."""
    return forward_flops(w) - _head_flops(w, _responses(w) - w.prompts)


def prefill_flops(w: Workload) -> int:
    """The part of `generate_flops` before the second token."""
    return generate_flops(w.replace(response_length=1))


def decode_bytes(w: Workload, *, weight_size: int = 4, cache_size: int = 4) -> float:
    """Bytes that one decoded token must read: its share of a decode step's reads.

    A step reads every matrix and the head once for all rollouts, the prompts' keys and values once
    per prompt, and those of the responses so far (half of T on average).
    """
    weights = w.depth * layer_parameters(w) + w.vocab_size * w.width
    per_token = 2 * w.depth * w.kv_heads * w.head_dim
    cached = w.prompts * w.prompt_length + _responses(w) * w.response_length / 2
    return (weight_size * weights + cache_size * per_token * cached) / _responses(w)


def decode_flops(w: Workload) -> float:
    """FLOPs of one decoded token, the average over a response's tokens but the first."""
    tokens = _responses(w) * (w.response_length - 1)
    return (generate_flops(w) - prefill_flops(w)) / max(tokens, 1)


def step_bytes(w: Workload) -> int:
    """About what an update holds at its peak beside the state, float32, without rematerialisation.

    Gradients, one chunk of logits, and for every token and layer what the backward pass reads:
    residuals and norms, query, key, value and their rotations, the MLP's four products, and the
    attention's scores and weights. Good for how memory grows, to tens of per cent for its size.
    """
    heads = w.heads + 2 * w.kv_heads
    per_token = 4 * w.width + 2 * heads * w.head_dim + 4 * w.mlp_width
    layer = layer_tokens(w) * per_token + 2 * visible_pairs(w) * w.heads
    chunk = min(w.chunk_size, _responses(w) * w.response_length)
    return 4 * (parameters(w) + w.depth * layer + chunk * w.vocab_size)


def _responses(w: Workload) -> int:
    return w.prompts * w.samples


def _head_flops(w: Workload, tokens: int) -> int:
    return 2 * tokens * w.width * w.vocab_size
