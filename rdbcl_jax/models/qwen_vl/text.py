"""The decoder layer of the language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float

from rdbcl_jax.models.attention import Block
from rdbcl_jax.models.layers import GatedMLP, Linear, rotate
from rdbcl_jax.models.qwen_vl.config import TextConfig


class Attention(nnx.Module):
    def __init__(self, config: TextConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        self.attend = attend
        self.head_dim = config.head_dim
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        bias = {"use_bias": config.qkv_bias, "rngs": rngs, **dtypes}
        self.q_proj = Linear(config.width, q_width, **bias)
        self.k_proj = Linear(config.width, kv_width, **bias)
        self.v_proj = Linear(config.width, kv_width, **bias)
        self.o_proj = Linear(q_width, config.width, use_bias=False, rngs=rngs, **dtypes)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            norm = {"epsilon": config.norm_eps, "rngs": rngs, **dtypes}
            self.q_norm = nnx.RMSNorm(config.head_dim, **norm)
            self.k_norm = nnx.RMSNorm(config.head_dim, **norm)

    def __call__(self, x, rope, mask, context, place):
        def heads(projected):
            return projected.reshape(*projected.shape[:-1], -1, self.head_dim)

        query, key = heads(self.q_proj(x)), heads(self.k_proj(x))
        value = heads(self.v_proj(x))
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, rope), rotate(key, rope)
        if place is None:
            kept, own = (key, value), Block(key, value, mask, causal=True)
        else:
            kept, own = place(key, value)
        out = self.attend(query, (*context, own))
        return self.o_proj(out.reshape(*x.shape[:-1], -1)), kept


class TextLayer(nnx.Module):
    def __init__(self, config: TextConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        norm = {"epsilon": config.norm_eps, "rngs": rngs, **dtypes}
        self.input_layernorm = nnx.RMSNorm(config.width, **norm)
        self.self_attn = Attention(config, attend=attend, rngs=rngs, **dtypes)
        self.post_attention_layernorm = nnx.RMSNorm(config.width, **norm)
        self.mlp = GatedMLP(config.width, config.mlp_width, bias=False, rngs=rngs, **dtypes)

    def __call__(
        self,
        x: Float[Array, "*lead T D"],
        rope: tuple[Array, Array],
        mask: Bool[Array, "*lead T"],
        context: tuple[Block, ...] = (),
        place: Callable[[Array, Array], tuple[Any, Block]] | None = None,
    ):
        """Causal attention among the T tokens of `x`, after everything in `context`.

        Returns the new `x` and the (key, value) [*lead, T, Hkv, Dh] that later tokens will need.
        In decoding, `place` puts these into a cache: it returns the cache, which is returned then,
        and the block of it that `x` attends to.
        """
        attended, kept = self.self_attn(self.input_layernorm(x), rope, mask, context, place)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kept


def mrope_axes(config: TextConfig) -> tuple[int, ...]:
    """Which position axis (0 temporal, 1 height, 2 width) each rotary frequency reads."""
    sections = config.mrope_section
    if not config.mrope_interleaved:
        return tuple(axis % 3 for axis, size in enumerate(sections) for _ in range(size))
    # by turns; an axis whose section is used up leaves its turns to the temporal one
    frequencies = range(config.head_dim // 2)
    return tuple(f % 3 if f < 3 * sections[f % 3] else 0 for f in frequencies)
