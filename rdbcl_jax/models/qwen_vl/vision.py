"""The vision tower: patches of an image to visual tokens of the language model's width."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from rdbcl_jax.models.attention import Block
from rdbcl_jax.models.layers import MLP, GatedMLP, Linear, inverse_frequencies, rotary, rotate
from rdbcl_jax.models.qwen_vl.config import VisionConfig

AXES = (
    (r"qkv/kernel$", ("embed", "heads")),
    (r"attn/proj/kernel$", ("heads", "embed")),
    (r"fc1/kernel$", ("embed", "mlp")),
    (r"fc2/kernel$", ("mlp", "embed")),
    (r"patch_embed/proj/kernel$", (None, "embed")),
)


def _norm(config: VisionConfig, width: int, **options):
    if config.norm == "rms":
        return nnx.RMSNorm(width, epsilon=1e-6, **options)
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, **options)


class PatchEmbed(nnx.Module):
    """The convolution whose stride is its kernel, as the matrix product that it is."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, **dtypes):
        self.proj = Linear(
            config.patch_dim, config.width, use_bias=config.patch_bias, rngs=rngs, **dtypes
        )

    def __call__(self, patches):
        return self.proj(patches)


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        self.attend = attend
        self.heads = config.heads
        self.window = config.window_units**2 * config.merge_size**2
        self.qkv = Linear(config.width, 3 * config.width, rngs=rngs, **dtypes)
        self.proj = Linear(config.width, config.width, rngs=rngs, **dtypes)

    def __call__(self, x, rope, mask, is_full):
        *lead, slots, width = x.shape
        qkv = self.qkv(x).reshape(*lead, slots, 3, self.heads, width // self.heads)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        query, key = rotate(query, rope), rotate(key, rope)

        def over_image():
            return self.attend(query, (Block(key, value, mask),))

        def over_windows():
            def split(a):
                return a.reshape(*lead, -1, self.window, *a.shape[len(lead) + 1 :])

            block = Block(split(key), split(value), split(mask))
            return self.attend(split(query), (block,)).reshape(query.shape)

        # a scalar predicate: only the branch taken runs
        out = jax.lax.cond(is_full, over_image, over_windows) if self.window else over_image()
        return self.proj(out.reshape(*lead, slots, width))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        self.norm1 = _norm(config, config.width, rngs=rngs, **dtypes)
        self.norm2 = _norm(config, config.width, rngs=rngs, **dtypes)
        self.attn = VisionAttention(config, attend=attend, rngs=rngs, **dtypes)
        size = config.width, config.mlp_width
        self.mlp: GatedMLP | MLP
        if config.activation == "silu":
            self.mlp = GatedMLP(*size, bias=True, rngs=rngs, **dtypes)
        else:
            self.mlp = MLP(*size, config.activation, rngs=rngs, **dtypes)

    def __call__(self, x, rope, mask, is_full):
        x = x + self.attn(self.norm1(x), rope, mask, is_full)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Merges merge² neighbouring patches into one visual token; the norm comes before or after."""

    def __init__(self, config: VisionConfig, *, norm_merged: bool, rngs: nnx.Rngs, **dtypes):
        self.merged_width = config.width * config.merge_size**2
        self.norm_merged = norm_merged
        norm_width = self.merged_width if norm_merged else config.width
        self.ln_q = _norm(config, norm_width, rngs=rngs, **dtypes)
        self.fc1 = Linear(self.merged_width, self.merged_width, rngs=rngs, **dtypes)
        self.fc2 = Linear(self.merged_width, config.out_width, rngs=rngs, **dtypes)

    def __call__(self, x):
        def merge(x):
            return x.reshape(*x.shape[:-2], -1, self.merged_width)

        x = self.ln_q(merge(x)) if self.norm_merged else merge(self.ln_q(x))
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


def vision_rope(config: VisionConfig, coords):
    """Axial rotary embedding: half of the frequencies turn with the row, half with the column."""
    head_dim = config.width // config.heads
    frequencies = inverse_frequencies(head_dim // 2, 10000.0)
    axes = (0,) * len(frequencies) + (1,) * len(frequencies)
    return rotary(coords, jnp.concatenate([frequencies, frequencies]), axes)


def interpolated_positions(table, coords, grid):
    """The learned side × side grid of embeddings [side², W], stretched to each image's size.

    Bilinear, corner on corner. `coords` [*batch, S, 2] and `grid` [*batch, 2] count patches.
    Returns [*batch, S, W], float32.
    """
    side = int(len(table) ** 0.5)
    steps = jnp.maximum(jnp.asarray(grid)[..., None, :] - 1, 1)
    at = jnp.asarray(coords, jnp.float32) * (side - 1) / steps
    at = jnp.minimum(at, side - 1)  # padded slots may lie outside of their image
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, side - 1)
    up = at - low
    total = 0.0
    for row, row_weight in ((low[..., 0], 1 - up[..., 0]), (high[..., 0], up[..., 0])):
        for col, col_weight in ((low[..., 1], 1 - up[..., 1]), (high[..., 1], up[..., 1])):
            total += table[row * side + col] * (row_weight * col_weight)[..., None]
    return total
