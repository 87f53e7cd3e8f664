"""The SigLIP vision tower (arXiv:2303.15343), which several families see through: a vector of each
patch of a picture.

How a picture is cut, and where its patches stand, is the family's affair; here it is `Patches`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import ArrayLike, pytree
from rdbcl_jax.models.attention import Block
from rdbcl_jax.models.decoder import Decoder, Module
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.layers import ACTIVATIONS, MLP, Linear

AXES = (  # beside the decoder's, which name q_proj, k_proj and v_proj too
    (r"out_proj/kernel$", ("heads", "embed")),
    (r"fc1/kernel$", ("embed", "mlp")),
    (r"fc2/kernel$", ("mlp", "embed")),
    (r"patch_embedding/kernel$", (None, "embed")),
)


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    depth: int
    width: int
    mlp_width: int
    heads: int
    patch_size: int  # pixels
    image_size: int  # pixels; its patches are the square of learned positions
    norm_eps: float
    activation: str
    channels: int = 3

    @property
    def side(self) -> int:
        """Learned positions along a side of their square."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """C, the numbers of a patch."""
        return self.channels * self.patch_size**2


def siglip_config(raw: Mapping[str, Any]) -> SiglipConfig:
    """The tower that a `vision_config` describes, in which no field is left out.

    Raises ValueError for an activation that is not known, and for positions that are no square.
    """
    if (activation := raw["hidden_act"]) not in ACTIVATIONS:
        raise ValueError(f"vision_config.hidden_act is {activation!r}, not {tuple(ACTIVATIONS)}")
    for name in ("image_size", "patch_size"):
        if not isinstance(raw[name], int):
            raise ValueError(f"vision_config.{name} is {raw[name]}, expected one number of pixels")
    return SiglipConfig(
        depth=raw["num_hidden_layers"],
        width=raw["hidden_size"],
        mlp_width=raw["intermediate_size"],
        heads=raw["num_attention_heads"],
        patch_size=raw["patch_size"],
        image_size=raw["image_size"],
        norm_eps=raw["layer_norm_eps"],
        activation=activation,
        channels=raw["num_channels"],
    )


@pytree
class Patches:
    """Pictures of one shape, S patches each."""

    pixels: Float[ArrayLike, "*batch S C"]  # normalised; as `cut` flattens a patch
    positions: Int[ArrayLike, "*batch S"]  # in the square of learned ones, row by row
    mask: Bool[ArrayLike, "*batch S"]  # patches that others attend to


def cut(picture: Float[np.ndarray, "*batch C H W"], size: int) -> Float[np.ndarray, "*batch S C"]:
    """Patches of `size` × `size` pixels, row by row; each is flattened channel by channel. What
    fills no patch at the right and at the bottom is left out."""
    *lead, channels, height, width = picture.shape
    rows, columns = height // size, width // size
    grid = picture[..., : rows * size, : columns * size]
    grid = grid.reshape(*lead, channels, rows, size, columns, size)
    grid = np.moveaxis(grid, (-4, -2), (-5, -4))  # rows, columns, channel, y, x
    return grid.reshape(*lead, rows * columns, channels * size**2)


class SiglipAttention(nnx.Module):
    def __init__(self, config: SiglipConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        self.attend = attend
        self.heads = config.heads
        size = config.width, config.width
        self.q_proj = Linear(*size, rngs=rngs, **dtypes)
        self.k_proj = Linear(*size, rngs=rngs, **dtypes)
        self.v_proj = Linear(*size, rngs=rngs, **dtypes)
        self.out_proj = Linear(*size, rngs=rngs, **dtypes)

    def __call__(self, x, mask):
        def heads(projected):
            return projected.reshape(*x.shape[:-1], self.heads, -1)

        query, key, value = (heads(f(x)) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(self.attend(query, (Block(key, value, mask),)).reshape(x.shape))


class SiglipLayer(nnx.Module):
    def __init__(self, config: SiglipConfig, *, attend: Callable, rngs: nnx.Rngs, **dtypes):
        self.layer_norm1 = _norm(config, rngs=rngs, **dtypes)
        self.layer_norm2 = _norm(config, rngs=rngs, **dtypes)
        self.self_attn = SiglipAttention(config, attend=attend, rngs=rngs, **dtypes)
        size = config.width, config.mlp_width, config.activation
        self.mlp = MLP(*size, rngs=rngs, **dtypes)

    def __call__(self, x, mask):
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


def _norm(config: SiglipConfig, **options):
    return nnx.LayerNorm(config.width, epsilon=config.norm_eps, use_fast_variance=False, **options)


def modules(model: Decoder, place: str, config: SiglipConfig) -> dict[str, Module]:
    """The tower's modules, for `Decoder.modules`; `place` is where it is in the parameters."""
    options, attend = model.dtypes, model.attend
    return {
        f"{place}/embeddings/patch_embedding": Module(
            lambda rngs: Linear(config.patch_dim, config.width, rngs=rngs, **options)
        ),
        f"{place}/embeddings/position_embedding": Module(
            lambda rngs: nnx.Embed(config.side**2, config.width, rngs=rngs, **options)
        ),
        f"{place}/encoder/layers": Module(
            lambda rngs: SiglipLayer(config, attend=attend, rngs=rngs, **options), config.depth
        ),
        f"{place}/post_layernorm": Module(lambda rngs: _norm(config, rngs=rngs, **options)),
    }


def kernel_shapes(name: str, config: SiglipConfig) -> dict[str, tuple[int, ...]]:
    """`WeightMap.shapes` of the tower, which tensors call `name`: the patches' matrix is published
    as the convolution that it is."""
    size = config.patch_size
    shape = (config.width, config.channels, size, size)
    return {f"{name}.embeddings.patch_embedding.weight": shape}


def encode(
    model: Decoder,
    place: str,
    params: Params,
    patches: Patches,
    *,
    after: Sequence[int] | None = None,
) -> Float[Array, "*batch S D"]:
    """The tower's vectors of all patches.

    Args:
      place, params: as in `modules`; all parameters of the model.
      after: numbers of layers, whose outputs come side by side; None: what comes after all of them
        and the last norm.
    """

    def own(name):
        return functools.reduce(dict.__getitem__, f"{place}/{name}".split("/"), params)

    def run(name, x):
        return model.module(f"{place}/{name}", own(name))(x)

    x = run("embeddings/patch_embedding", jnp.asarray(patches.pixels, model.dtype))
    x += run("embeddings/position_embedding", jnp.asarray(patches.positions))
    mask = jnp.asarray(patches.mask)

    def layer(x, layer):
        return model.module(f"{place}/encoder/layers", layer)(x, mask), None

    def through(x, first, last):
        layers = jax.tree.map(lambda a: a[first:last], own("encoder/layers"))
        return model.scan(layer, x, layers)[0]

    if after is None:
        return run("post_layernorm", through(x, 0, None))
    outputs, done = {}, 0
    for depth in sorted(set(after)):
        x = outputs[depth] = through(x, done, depth)
        done = depth
    return jnp.concatenate([outputs[depth] for depth in after], -1)
