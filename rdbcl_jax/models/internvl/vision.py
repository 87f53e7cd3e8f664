"""InternViT (arXiv:2312.14238): tiles of a picture to visual tokens of the decoder's width."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from rdbcl_jax.models.attention import Block
from rdbcl_jax.models.internvl.config import InternVLConfig, VisionConfig
from rdbcl_jax.models.layers import ACTIVATIONS, MLP, Linear
from rdbcl_jax.models.pictures import merged

AXES = (  # beside the decoder's, which name q_proj, k_proj and v_proj too
    (r"projection_layer/kernel$", ("heads", "embed")),
    (r"fc1/kernel$", ("embed", "mlp")),
    (r"fc2/kernel$", ("mlp", "embed")),
    (r"patch_embeddings/projection/kernel$", (None, "embed")),
    (r"linear_1/kernel$", ("embed", "mlp")),
    (r"linear_2/kernel$", ("mlp", "embed")),
)


def _norm(config: VisionConfig, **options):
    if config.norm == "rms_norm":
        return nnx.RMSNorm(config.width, epsilon=config.norm_eps, **options)
    return nnx.LayerNorm(config.width, epsilon=config.norm_eps, use_fast_variance=False, **options)


class PatchEmbeddings(nnx.Module):
    """The convolution whose stride is its kernel, as the matrix product that it is."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, **dtypes):
        self.projection = Linear(config.patch_dim, config.width, rngs=rngs, **dtypes)

    def __call__(self, patches):
        return self.projection(patches)


class Embeddings(nnx.Module):
    """A tile's patches [*batch, S, C], with a class token before them, at their learned places."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype, param_dtype):
        def learned(tokens: int):
            draw = nnx.initializers.normal(0.02)
            return nnx.Param(draw(rngs.params(), (1, tokens, config.width), param_dtype))

        self.patch_embeddings = PatchEmbeddings(
            config, rngs=rngs, dtype=dtype, param_dtype=param_dtype
        )
        self.cls_token = learned(1)
        self.position_embeddings = learned(config.side**2 + 1)

    def __call__(self, patches):
        x = self.patch_embeddings(patches)
        first = self.cls_token[...].astype(x.dtype)[0]
        first = jnp.broadcast_to(first, (*x.shape[:-2], *first.shape))
        x = jnp.concatenate([first, x], axis=-2)
        return x + self.position_embeddings[...].astype(x.dtype)[0]


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        self.attend = attend
        self.heads = config.heads
        size, options = (config.width, config.width), {"rngs": rngs, **dtypes}
        self.q_proj = Linear(*size, use_bias=config.qkv_bias, **options)
        self.k_proj = Linear(*size, use_bias=config.qkv_bias, **options)
        self.v_proj = Linear(*size, use_bias=config.qkv_bias, **options)
        self.projection_layer = Linear(*size, **options)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = nnx.RMSNorm(config.width, epsilon=1e-6, **options)
            self.k_norm = nnx.RMSNorm(config.width, epsilon=1e-6, **options)

    def __call__(self, x):
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (a.reshape(*x.shape[:-1], self.heads, -1) for a in (query, key, value))
        everything = jnp.ones(x.shape[:-1], bool)
        out = self.attend(query, (Block(key, value, everything),))
        return self.projection_layer(out.reshape(x.shape))


class VisionLayer(nnx.Module):
    """Attention and an MLP; learned scales, one per channel, weigh what each adds."""

    def __init__(self, config: VisionConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        options = {"rngs": rngs, **dtypes}
        self.attention = VisionAttention(config, attend=attend, **options)
        self.mlp = MLP(config.width, config.mlp_width, config.activation, **options)
        self.layernorm_before = _norm(config, **options)
        self.layernorm_after = _norm(config, **options)
        scale = jnp.full(config.width, config.layer_scale, dtypes["param_dtype"])
        self.lambda_1, self.lambda_2 = nnx.Param(scale), nnx.Param(scale)

    def __call__(self, x):
        x = x + self.lambda_1[...].astype(x.dtype) * self.attention(self.layernorm_before(x))
        return x + self.lambda_2[...].astype(x.dtype) * self.mlp(self.layernorm_after(x))


class Projector(nnx.Module):
    """merge² neighbouring patches of a tile to one visual token."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs, **dtypes):
        self.merge = config.merge_size
        self.activation = ACTIVATIONS[config.projector_activation]
        options = {"rngs": rngs, **dtypes}
        width = config.vision.width * self.merge**2
        self.layer_norm = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, **options)
        self.linear_1 = Linear(width, config.text.width, **options)
        self.linear_2 = Linear(config.text.width, config.text.width, **options)

    def __call__(self, x):
        x = self.layer_norm(merged(x, self.merge))
        return self.linear_2(self.activation(self.linear_1(x)))


def last_norm(config: VisionConfig, *, rngs: nnx.Rngs, **dtypes) -> nnx.Module:
    """After all layers: a layer norm whatever the layers' own is."""
    return nnx.LayerNorm(
        config.width, epsilon=config.norm_eps, use_fast_variance=False, rngs=rngs, **dtypes
    )
