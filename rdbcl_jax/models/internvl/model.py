"""InternVL: the shared decoder, and InternViT before it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rdbcl_jax.batches import ArrayLike, PromptBatch, pytree
from rdbcl_jax.models import pictures, tiles
from rdbcl_jax.models.decoder import Decoder, Module
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.internvl.config import InternVLConfig
from rdbcl_jax.models.internvl.vision import AXES, Embeddings, Projector, VisionLayer, last_norm
from rdbcl_jax.models.weights import WeightMap

_PREFIXES = {"language_model": "language_model.model", "lm_head": "language_model.lm_head"}
_ALIASES = {  # transformers nests since 4.52 what was published flat
    r"^model\.language_model\.": "language_model.model.",
    r"^model\.(vision_tower|multi_modal_projector)\.": r"\1.",
    r"^lm_head\.": "language_model.lm_head.",
}


@pytree
class Inputs:
    """What an InternVL reads beside a prompt's tokens: `PromptBatch.model_inputs`."""

    places: Int[ArrayLike, "P L"]  # visual token of the row, in [0, T·N); -1 for text
    tiles: Float[ArrayLike, "P T S C"] | None  # None: no row of the batch has an image


def lay_out(
    tokens: np.ndarray,
    mask: np.ndarray,
    rows: list[list[np.ndarray]],
    config: InternVLConfig,
    room: int,
) -> Inputs:
    """The model's inputs for token rows [P, L].

    Args:
      rows: per row, the tiles [S, C] of all of its images.
      room: T.
    """
    vectors = [np.arange(len(row) * config.tile_tokens) for row in rows]
    size = (room, config.vision.side**2, config.vision.patch_dim)
    return Inputs(
        pictures.places(tokens, mask, vectors, config.image_token_id), tiles.stack(rows, size)
    )


@dataclasses.dataclass(frozen=True)
class InternVL(Decoder):
    """An InternVL policy; attributes as in `Decoder`, `config` an `InternVLConfig`."""

    vision_axes = AXES

    @property
    def weights(self) -> WeightMap:
        v = self.config.vision
        patches = (v.width, v.channels, v.patch_size, v.patch_size)
        shapes = {"vision_tower.embeddings.patch_embeddings.projection.weight": patches}
        return WeightMap(self.stacks, _PREFIXES, {}, shapes, _ALIASES)

    def modules(self) -> dict[str, Module]:
        config, vision, options = self.config, self.config.vision, self.dtypes
        modules = {
            "vision_tower/embeddings": Module(
                lambda rngs: Embeddings(vision, rngs=rngs, **options)
            ),
            "vision_tower/encoder/layer": Module(
                lambda rngs: VisionLayer(vision, attend=self.attend, rngs=rngs, **options),
                vision.depth,
            ),
            "multi_modal_projector": Module(lambda rngs: Projector(config, rngs=rngs, **options)),
        }
        if vision.last_norm:
            modules["vision_tower/layernorm"] = Module(
                lambda rngs: last_norm(vision, rngs=rngs, **options)
            )
        return modules

    def prepare(
        self, input_ids, attention_mask=None, *, pixel_values=None, **unused
    ) -> PromptBatch:
        """A Hugging Face processor's numpy output as a PromptBatch; padding on either side."""
        if unused.get("pixel_values_videos") is not None:
            raise NotImplementedError("videos are not supported; pass images")
        text, config = super().prepare(input_ids, attention_mask), self.config
        tokens, mask = np.asarray(text.tokens), np.asarray(text.mask)
        rows: list[list[np.ndarray]] = [[] for _ in tokens]
        if pixel_values is not None:
            found = ((tokens == config.image_token_id) & mask).sum(1)
            ends = np.cumsum(-(-found // config.tile_tokens))
            if ends[-1] != len(pixel_values):
                raise ValueError(
                    f"{found.sum()} image tokens in {len(rows)} prompts, but the images have "
                    f"{len(pixel_values)} tiles of {config.tile_tokens} visual tokens each"
                )
            patches = tiles.patches_of(pixel_values, config.vision)
            rows = [list(row) for row in np.split(patches, ends[:-1])]
        inputs = lay_out(tokens, mask, rows, config, max(map(len, rows)))
        return dataclasses.replace(text, model_inputs=inputs)

    def embed_prompts(self, params, prompts: PromptBatch):
        """Embeddings, pictures in their places."""
        x = self.embed_tokens(params, prompts.tokens)
        own: Inputs = prompts.model_inputs
        if own.tiles is None:
            return x, None
        visual = self.visual_tokens(params, own.tiles).astype(x.dtype)
        return pictures.put(x, visual, own.places), None

    def visual_tokens(
        self, params: Params, tiles: Float[ArrayLike, "P T S C"]
    ) -> Float[Array, "P TN D"]:
        """The visual tokens of each row's tiles, one tile after the other."""
        tower, vision = params["vision_tower"], self.config.vision
        embed = self.module("vision_tower/embeddings", tower["embeddings"])
        x = embed(jnp.asarray(tiles, self.dtype))

        def layer(x, layer):
            return self.module("vision_tower/encoder/layer", layer)(x), None

        layers = jax.tree.map(lambda a: a[: vision.layers_read], tower["encoder"]["layer"])
        x, _ = self.scan(layer, x, layers)
        if vision.reads_last_norm:
            x = self.module("vision_tower/layernorm", tower["layernorm"])(x)
        project = self.module("multi_modal_projector", params["multi_modal_projector"])
        x = project(x[..., 1:, :])  # the class token is not read
        return x.reshape(len(x), -1, x.shape[-1])
