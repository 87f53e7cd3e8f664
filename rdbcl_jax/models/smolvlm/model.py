"""SmolVLM: the shared decoder, and the shared SigLIP tower before it."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.models import siglip
from rdbcl_jax.models.decoder import Decoder, Module
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.layers import Linear
from rdbcl_jax.models.pictures import merged, put
from rdbcl_jax.models.smolvlm import inputs
from rdbcl_jax.models.weights import WeightMap

_TOWER = "vision_model"
_PROJECTION = "connector/modality_projection/proj"
_AXES = ((r"modality_projection/proj/kernel$", ("mlp", "embed")),)
_PARTS = {  # of the parameters, and the names that tensors of each begin with
    "language_model": "model.text_model",
    _TOWER: "model.vision_model",
    "connector": "model.connector",
}


@dataclasses.dataclass(frozen=True)
class SmolVLM(Decoder):
    """A SmolVLM or Idefics3 policy; attributes as in `Decoder`, `config` a `SmolVLMConfig`."""

    vision_axes = siglip.AXES + _AXES

    @property
    def weights(self) -> WeightMap:
        shapes = siglip.kernel_shapes(_TOWER, self.config.vision)
        return WeightMap(self.stacks, _PARTS, shapes=shapes)

    def modules(self) -> dict[str, Module]:
        config = self.config
        merged = config.vision.width * config.scale**2
        return siglip.modules(self, _TOWER, config.vision) | {
            _PROJECTION: Module(
                lambda rngs: Linear(
                    merged, config.text.width, use_bias=False, rngs=rngs, **self.dtypes
                )
            )
        }

    def prepare(
        self,
        input_ids,
        attention_mask=None,
        *,
        pixel_values=None,
        pixel_attention_mask=None,
        **unused,
    ) -> PromptBatch:
        """A Hugging Face processor's numpy output as a PromptBatch; padding on either side. Tiles
        of zeros are padding.

        Raises ValueError for a row whose image tokens do not fit its tiles.
        """
        if unused.get("pixel_values_videos") is not None:
            raise NotImplementedError("videos are not supported; pass images")
        text = super().prepare(input_ids, attention_mask)
        tokens, real_tokens = np.asarray(text.tokens), np.asarray(text.mask)
        pictures: list[inputs.Tiles | None] = [None] * len(tokens)
        if pixel_values is not None:
            pixels = np.asarray(pixel_values, np.float32)
            for row, tiles in enumerate(pixels):
                real = tiles.any((1, 2, 3))
                mask = None
                if pixel_attention_mask is not None:
                    mask = np.asarray(pixel_attention_mask[row])[real].astype(bool)
                if real.any():
                    pictures[row] = inputs.tiles_of(tiles[real], mask, self.config)
        own = inputs.lay_out(tokens, real_tokens, pictures, self.config)
        return dataclasses.replace(text, model_inputs=own)

    def embed_prompts(self, params, prompts: PromptBatch):
        """Embeddings, with pictures in their places."""
        x = self.embed_tokens(params, prompts.tokens)
        own: inputs.Inputs = prompts.model_inputs
        if own.tiles is not None:
            x = put(x, self.visual_tokens(params, own.tiles).astype(x.dtype), own.places)
        return x, None

    def visual_tokens(self, params: Params, tiles: siglip.Patches) -> Float[Array, "P KN D"]:
        """Every visual token of a row, tile by tile: a square of scale × scale patches each."""
        x = siglip.encode(self, _TOWER, params, tiles)
        x = merged(x, self.config.scale)
        x = x.reshape(len(x), -1, x.shape[-1])
        return self.module(_PROJECTION, params["connector"]["modality_projection"]["proj"])(x)
