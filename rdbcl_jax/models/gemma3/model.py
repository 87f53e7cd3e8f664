"""Gemma 3: the shared decoder with sliding layers, and SigLIP before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import ArrayLike, PromptBatch, pytree
from rdbcl_jax.models import siglip, tiles
from rdbcl_jax.models.decoder import Decoder, Module
from rdbcl_jax.models.gemma3.config import Gemma3Config
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.layers import CentredRMSNorm
from rdbcl_jax.models.pictures import places, put
from rdbcl_jax.models.weights import WeightMap

AXES = ((r"mm_input_projection_weight$", (None, "embed")),)
_TOWER = "vision_tower"
_PREFIXES = {
    "language_model": "language_model.model",
    "lm_head": "language_model.lm_head",
    _TOWER: "vision_tower.vision_model",
}
# transformers nests since 4.52 what was published flat, and 5 leaves out the tower's `vision_model`
_ALIASES = {
    r"^model\.language_model\.": "language_model.model.",
    r"^(model\.)?vision_tower\.(vision_model\.)?": "vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.": "multi_modal_projector.",
    r"^lm_head\.": "language_model.lm_head.",
}


@pytree
class Inputs:
    """What a Gemma 3 reads beside a prompt's tokens: `PromptBatch.model_inputs`.

    Axis names beside those of `batches`: K images per prompt, S patches of each, C numbers per
    patch, N visual tokens of an image.
    """

    places: Int[ArrayLike, "P L"]  # visual token of the row, in [0, K·N); -1 for text
    spans: Int[ArrayLike, "P L"]  # which tokens see each other in both directions; -1: causal ones
    images: Float[ArrayLike, "P K S C"] | None  # None: no row of the batch has an image


def lay_out(
    tokens: np.ndarray,
    mask: np.ndarray,
    images: Sequence[Sequence[np.ndarray]],
    config: Gemma3Config,
    *,
    room: int,
    is_image: np.ndarray | None = None,
) -> Inputs:
    """The model's inputs for token rows [P, L].

    Args:
      images: per row, patches [S, C] of each image.
      room: K.
      is_image: [P, L], tokens that belong to pictures; default: the placeholders.
    Raises:
      ValueError: a row whose placeholders and images do not fit.
    """
    vision, placeholder = config.vision, config.image_token_id
    visual = [np.arange(len(row) * config.image_tokens) for row in images]
    if is_image is None:
        is_image = (tokens == placeholder) & mask
    starts = is_image & ~np.pad(is_image, ((0, 0), (1, 0)))[:, :-1]
    spans = np.where(is_image, np.cumsum(starts, 1, dtype=np.int32) - 1, -1)
    stacked = tiles.stack(images, (room, vision.side**2, vision.patch_dim))
    return Inputs(places(tokens, mask, visual, placeholder), spans.astype(np.int32), stacked)


class Projector(nnx.Module):
    """A tower's patches, averaged square by square, as visual tokens of the decoder's width."""

    def __init__(self, config: Gemma3Config, *, rngs: nnx.Rngs, **dtypes):
        vision, width = config.vision, config.text.width
        self.tokens = config.image_tokens
        self.dtype = dtypes["dtype"]
        draw = nnx.initializers.lecun_normal()
        self.mm_input_projection_weight = nnx.Param(
            draw(rngs.params(), (vision.width, width), dtypes["param_dtype"])
        )
        self.mm_soft_emb_norm = CentredRMSNorm(
            vision.width, epsilon=vision.norm_eps, rngs=rngs, **dtypes
        )

    def __call__(self, x: Float[Array, "*batch S W"]) -> Float[Array, "*batch N D"]:
        *batch, patches, width = x.shape
        side, out = int(patches**0.5), int(self.tokens**0.5)
        squares = x.reshape(*batch, out, side // out, out, side // out, width)
        averages = squares.astype(jnp.float32).mean((-4, -2)).astype(self.dtype)
        weight = jnp.asarray(self.mm_input_projection_weight[...], self.dtype)
        return self.mm_soft_emb_norm(averages.reshape(*batch, -1, width)) @ weight


@dataclasses.dataclass(frozen=True)
class Gemma3(Decoder):
    """A Gemma 3 policy; attributes as in `Decoder`, `config` a `Gemma3Config`."""

    vision_axes = siglip.AXES + AXES

    @property
    def weights(self) -> WeightMap:
        shapes = siglip.kernel_shapes(_TOWER, self.config.vision)
        return WeightMap(self.stacks, _PREFIXES, shapes=shapes, aliases=_ALIASES)

    def modules(self) -> dict[str, Module]:
        config, options = self.config, self.dtypes
        return {
            **siglip.modules(self, _TOWER, config.vision),
            "multi_modal_projector": Module(lambda rngs: Projector(config, rngs=rngs, **options)),
        }

    def prepare(
        self, input_ids, attention_mask=None, *, pixel_values=None, token_type_ids=None, **unused
    ) -> PromptBatch:
        """A Hugging Face processor's numpy output as a PromptBatch; padding on either side."""
        if unused.get("pixel_values_videos") is not None:
            raise NotImplementedError("videos are not supported; pass images")
        text = super().prepare(input_ids, attention_mask)
        tokens, mask = np.asarray(text.tokens), np.asarray(text.mask)
        rows: list[list[np.ndarray]] = [[] for _ in tokens]
        if pixel_values is not None:
            pixels = np.asarray(pixel_values, np.float32)
            made = iter(siglip.cut(pixels, self.config.vision.patch_size))
            placeholders = ((tokens == self.config.image_token_id) & mask).sum(1)
            counts = placeholders // self.config.image_tokens
            rows = [[one for _, one in zip(range(n), made)] for n in counts]  # noqa: B905
            rows[-1] += made  # too many: the last row's error tells
        is_image = None if token_type_ids is None else (np.asarray(token_type_ids) == 1) & mask
        room = max(map(len, rows))
        model_inputs = lay_out(tokens, mask, rows, self.config, room=room, is_image=is_image)
        return dataclasses.replace(text, model_inputs=model_inputs)

    def embed_prompts(self, params, prompts: PromptBatch):
        """Embeddings, pictures in their places."""
        x = self.embed_tokens(params, prompts.tokens)
        own: Inputs = prompts.model_inputs
        if own.images is None:
            return x, None
        visual = self.visual_tokens(params, own.images).astype(x.dtype)
        return put(x, visual, own.places), None

    def visual_tokens(
        self, params: Params, images: Float[ArrayLike, "P K S C"]
    ) -> Float[Array, "P KN D"]:
        """The visual tokens of each row's images, one image after the other."""
        shape = images.shape[:-1]
        positions = np.broadcast_to(np.arange(shape[-1]), shape)
        patches = siglip.Patches(images, positions, np.ones(shape, bool))
        x = siglip.encode(self, _TOWER, params, patches)
        x = self.module("multi_modal_projector", params["multi_modal_projector"])(x)
        return x.reshape(len(x), -1, x.shape[-1])

    def prompt_pairs(self, prompts: PromptBatch) -> Bool[Array, "P L L"] | None:
        """An image's tokens see each other in both directions."""
        own: Inputs = prompts.model_inputs
        if own.images is None:
            return None
        spans = jnp.asarray(own.spans)
        same = (spans[:, :, None] == spans[:, None, :]) & (spans[:, :, None] >= 0)
        return same | np.tri(spans.shape[1], dtype=bool)
