"""The decoder layer of the language model."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Bool, Float

from rdbcl_jax.models.attention import Block, attend
from rdbcl_jax.models.layers import GatedMLP, rotate
from rdbcl_jax.models.qwen_vl.config import TextConfig


class Attention(nnx.Module):
    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, **dtypes):
        self.head_dim = config.head_dim
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nnx.Linear(config.width, q_width, rngs=rngs, **dtypes)
        self.k_proj = nnx.Linear(config.width, kv_width, rngs=rngs, **dtypes)
        self.v_proj = nnx.Linear(config.width, kv_width, rngs=rngs, **dtypes)
        self.o_proj = nnx.Linear(q_width, config.width, use_bias=False, rngs=rngs, **dtypes)

    def __call__(self, x, rope, mask, context):
        def heads(projected):
            return projected.reshape(*projected.shape[:-1], -1, self.head_dim)

        query = rotate(heads(self.q_proj(x)), rope)
        key = rotate(heads(self.k_proj(x)), rope)
        value = heads(self.v_proj(x))
        out = attend(query, (*context, Block(key, value, mask, causal=True)))
        return self.o_proj(out.reshape(*x.shape[:-1], -1)), (key, value)


class TextLayer(nnx.Module):
    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, **dtypes):
        norm = {"epsilon": config.norm_eps, "rngs": rngs, **dtypes}
        self.input_layernorm = nnx.RMSNorm(config.width, **norm)
        self.self_attn = Attention(config, rngs=rngs, **dtypes)
        self.post_attention_layernorm = nnx.RMSNorm(config.width, **norm)
        self.mlp = GatedMLP(config.width, config.mlp_width, bias=False, rngs=rngs, **dtypes)

    def __call__(
        self,
        x: Float[Array, "*lead T D"],
        rope: tuple[Array, Array],
        mask: Bool[Array, "*lead T"],
        context: tuple[Block, ...] = (),
    ):
        """Causal attention among the T tokens of `x`, after everything in `context`.

        Returns the new `x` and the (key, value) [*lead, T, Hkv, Dh] that later tokens will need.
        """
        attended, key_value = self.self_attn(self.input_layernorm(x), rope, mask, context)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key_value


def mrope_axes(sections: tuple[int, ...]) -> tuple[int, ...]:
    """Which position axis (0 temporal, 1 height, 2 width) each rotary frequency reads."""
    return tuple(axis % 3 for axis, size in enumerate(sections) for _ in range(size))
