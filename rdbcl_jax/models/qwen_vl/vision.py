"""The vision tower: patches of an image to visual tokens of the language model's width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rdbcl_jax.models.attention import Block, attend
from rdbcl_jax.models.layers import GatedMLP, inverse_frequencies, rotary, rotate
from rdbcl_jax.models.qwen_vl.config import VisionConfig


class PatchEmbed(nnx.Module):
    """The convolution whose stride is its kernel, as the matrix product that it is."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, **dtypes):
        self.proj = nnx.Linear(config.patch_dim, config.width, use_bias=False, rngs=rngs, **dtypes)

    def __call__(self, patches):
        return self.proj(patches)


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, **dtypes):
        self.heads = config.heads
        self.window = config.window_units**2 * config.merge_size**2
        self.qkv = nnx.Linear(config.width, 3 * config.width, rngs=rngs, **dtypes)
        self.proj = nnx.Linear(config.width, config.width, rngs=rngs, **dtypes)

    def __call__(self, x, rope, mask, is_full):
        *lead, slots, width = x.shape
        qkv = self.qkv(x).reshape(*lead, slots, 3, self.heads, width // self.heads)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        query, key = rotate(query, rope), rotate(key, rope)

        def over_image():
            return attend(query, (Block(key, value, mask),))

        def over_windows():
            def split(a):
                return a.reshape(*lead, -1, self.window, *a.shape[len(lead) + 1 :])

            block = Block(split(key), split(value), split(mask))
            return attend(split(query), (block,)).reshape(query.shape)

        # a scalar predicate: only the branch taken runs
        out = jax.lax.cond(is_full, over_image, over_windows) if self.window else over_image()
        return self.proj(out.reshape(*lead, slots, width))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, **dtypes):
        self.norm1 = nnx.RMSNorm(config.width, epsilon=1e-6, rngs=rngs, **dtypes)
        self.norm2 = nnx.RMSNorm(config.width, epsilon=1e-6, rngs=rngs, **dtypes)
        self.attn = VisionAttention(config, rngs=rngs, **dtypes)
        self.mlp = GatedMLP(config.width, config.mlp_width, bias=True, rngs=rngs, **dtypes)

    def __call__(self, x, rope, mask, is_full):
        x = x + self.attn(self.norm1(x), rope, mask, is_full)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Merges merge² neighbouring patches into one visual token."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, **dtypes):
        self.merged_width = config.width * config.merge_size**2
        self.ln_q = nnx.RMSNorm(config.width, epsilon=1e-6, rngs=rngs, **dtypes)
        self.fc1 = nnx.Linear(self.merged_width, self.merged_width, rngs=rngs, **dtypes)
        self.fc2 = nnx.Linear(self.merged_width, config.out_width, rngs=rngs, **dtypes)

    def __call__(self, x):
        x = self.ln_q(x).reshape(*x.shape[:-2], -1, self.merged_width)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


def vision_rope(config: VisionConfig, coords):
    """Axial rotary embedding: half of the frequencies turn with the row, half with the column."""
    head_dim = config.width // config.heads
    frequencies = inverse_frequencies(head_dim // 2, 10000.0)
    axes = (0,) * len(frequencies) + (1,) * len(frequencies)
    return rotary(coords, jnp.concatenate([frequencies, frequencies]), axes)
