"""LLaVA-OneVision: the shared decoder, and SigLIP before it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rdbcl_jax.batches import ArrayLike, PromptBatch
from rdbcl_jax.models import siglip, tiles
from rdbcl_jax.models.decoder import Decoder, Module
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.layers import ACTIVATIONS, Linear
from rdbcl_jax.models.llava_onevision import inputs
from rdbcl_jax.models.llava_onevision.config import LlavaConfig
from rdbcl_jax.models.weights import WeightMap

AXES = ((r"linear_1/kernel$", ("embed", "mlp")), (r"linear_2/kernel$", ("mlp", "embed")))
_TOWER = "vision_tower"
_PREFIXES = {
    "language_model": "language_model.model",
    "lm_head": "language_model.lm_head",
    _TOWER: "vision_tower.vision_model",
}
_RENAMED = {r"^image_newline\.weight$": "image_newline"}
# transformers nests since 4.52 what was published flat, and 5 leaves out the tower's `vision_model`
_ALIASES = {
    r"^model\.language_model\.": "language_model.model.",
    r"^(model\.)?vision_tower\.(vision_model\.)?": "vision_tower.vision_model.",
    r"^model\.(multi_modal_projector\.|image_newline$)": r"\1",
    r"^lm_head\.": "language_model.lm_head.",
}


class Projector(nnx.Module):
    """A patch's vector to a visual token of the decoder's width."""

    def __init__(self, config: LlavaConfig, *, rngs: nnx.Rngs, **dtypes):
        self.activation = ACTIVATIONS[config.projector_activation]
        options = {"use_bias": config.projector_bias, "rngs": rngs, **dtypes}
        seen = config.vision.width * len(config.layers_read)
        self.linear_1 = Linear(seen, config.text.width, **options)
        self.linear_2 = Linear(config.text.width, config.text.width, **options)

    def __call__(self, x):
        return self.linear_2(self.activation(self.linear_1(x)))


class Newline(nnx.Module):
    """What stands at the end of each row of a picture."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, dtype, param_dtype):
        draw = nnx.initializers.normal(width**-0.5)
        self.embedding = nnx.Param(draw(rngs.params(), (width,), param_dtype))


@dataclasses.dataclass(frozen=True)
class LlavaOnevision(Decoder):
    """A LLaVA-OneVision policy; attributes as in `Decoder`, `config` a `LlavaConfig`."""

    vision_axes = siglip.AXES + AXES

    @property
    def weights(self) -> WeightMap:
        shapes = siglip.kernel_shapes(_TOWER, self.config.vision)
        return WeightMap(self.stacks, _PREFIXES, _RENAMED, shapes, _ALIASES)

    def modules(self) -> dict[str, Module]:
        config, options = self.config, self.dtypes
        return {
            **siglip.modules(self, _TOWER, config.vision),
            "multi_modal_projector": Module(lambda rngs: Projector(config, rngs=rngs, **options)),
            "image_newline": Module(lambda rngs: Newline(config.text.width, rngs=rngs, **options)),
        }

    def prepare(
        self,
        input_ids,
        attention_mask=None,
        *,
        pixel_values=None,
        image_sizes=None,
        batch_num_images=None,
        **unused,
    ) -> PromptBatch:
        """A Hugging Face processor's numpy output as a PromptBatch; padding on either side."""
        if unused.get("pixel_values_videos") is not None:
            raise NotImplementedError("videos are not supported; pass images")
        text = super().prepare(input_ids, attention_mask)
        tokens, mask = np.asarray(text.tokens), np.asarray(text.mask)
        rows: list[list[inputs.Picture]] = [[] for _ in tokens]
        if pixel_values is not None:
            made = _pictures(pixel_values, image_sizes, batch_num_images, self.config)
            rows = _by_row(tokens, mask, made, self.config)
        room = max(sum(len(picture.tiles) for picture in row) for row in rows)
        model_inputs = inputs.lay_out(tokens, mask, rows, self.config, room)
        return dataclasses.replace(text, model_inputs=model_inputs)

    def embed_prompts(self, params, prompts: PromptBatch):
        """Embeddings, pictures in their places."""
        x = self.embed_tokens(params, prompts.tokens)
        own: inputs.Inputs = prompts.model_inputs
        if own.tiles is None:
            return x, None
        visual = self.visual_tokens(params, own.tiles).astype(x.dtype)
        newline = params["image_newline"]["embedding"].astype(x.dtype)
        newline = jnp.broadcast_to(newline, (len(visual), 1, len(newline)))
        visual = jnp.concatenate([visual, newline], axis=1)
        sources, weights = jnp.asarray(own.sources), jnp.asarray(own.weights)  # sums in float32
        picture = jnp.zeros((), weights.dtype)
        for k in range(sources.shape[-1]):
            at = jnp.maximum(sources[..., k, None], 0)
            picture += jnp.take_along_axis(visual, at, axis=1) * weights[..., k, None]
        return jnp.where(sources[..., :1] >= 0, picture.astype(x.dtype), x), None

    def visual_tokens(
        self, params: Params, tiles: Float[ArrayLike, "P T S C"]
    ) -> Float[Array, "P TN D"]:
        """The visual tokens of each row's tiles, one tile after the other."""
        shape = tiles.shape[:-1]
        positions = np.broadcast_to(np.arange(shape[-1]), shape)
        patches = siglip.Patches(tiles, positions, np.ones(shape, bool))
        x = siglip.encode(self, _TOWER, params, patches, after=self.config.layers_read)
        x = self.module("multi_modal_projector", params["multi_modal_projector"])(x)
        return x.reshape(len(x), -1, x.shape[-1])


def _pictures(pixel_values, image_sizes, batch_num_images, config) -> list[inputs.Picture]:
    """The processor's images one by one. `pixel_values` has an axis of images, each padded to the
    most tiles, or only one of all images' tiles."""
    sizes = [(int(height), int(width)) for height, width in np.asarray(image_sizes)]
    alone = [True] * len(sizes)
    if batch_num_images is not None:
        alone = [n == 1 for n in np.asarray(batch_num_images).tolist() for _ in range(n)]
    seen = list(zip(sizes, alone, strict=True))
    counts = [inputs.tile_count(*one, config) for one in seen]
    if np.ndim(pixel_values[0]) == 3:
        pixel_values = np.split(np.asarray(pixel_values), np.cumsum(counts)[:-1])
    patches = [
        tiles.patches_of(image[:count], config.vision)
        for image, count in zip(pixel_values, counts, strict=True)
    ]
    return [inputs.Picture(cut, *one) for cut, one in zip(patches, seen, strict=True)]


def _by_row(tokens, mask, pictures, config) -> list[list[inputs.Picture]]:
    """Assigns the processor's flat list of images to rows, by counting their placeholders."""
    pending = ((tokens == config.image_token_id) & mask).sum(1)
    rows: list[list[inputs.Picture]] = [[] for _ in tokens]
    row = 0
    for picture in pictures:
        length = len(inputs.layout(picture.size, picture.alone, config).sources)
        while row < len(rows) - 1 and pending[row] < length:
            row += 1
        pending[row] -= length
        rows[row].append(picture)
    return rows
