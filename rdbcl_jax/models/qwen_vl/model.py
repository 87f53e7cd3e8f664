"""Qwen-VL: the shared decoder with M-RoPE, and a vision tower before it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.models.decoder import Decoder, Module
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.pictures import put
from rdbcl_jax.models.qwen_vl import inputs
from rdbcl_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from rdbcl_jax.models.qwen_vl.vision import (
    AXES,
    PatchEmbed,
    PatchMerger,
    VisionBlock,
    interpolated_positions,
    vision_rope,
)
from rdbcl_jax.models.qwen_vl.weights import weight_map
from rdbcl_jax.models.weights import WeightMap


@dataclasses.dataclass(frozen=True)
class QwenVL(Decoder):
    """A Qwen-VL policy; attributes as in `Decoder`, `config` a `QwenVLConfig`."""

    vision_axes = AXES

    @property
    def weights(self) -> WeightMap:
        return weight_map(self.config, self.stacks)

    def modules(self) -> dict[str, Module]:
        vision, options = self.config.vision, self.dtypes
        modules = {
            "visual/patch_embed": Module(lambda rngs: PatchEmbed(vision, rngs=rngs, **options)),
            "visual/blocks": Module(
                lambda rngs: VisionBlock(vision, attend=self.attend, rngs=rngs, **options),
                vision.depth,
            ),
            "visual/merger": Module(
                lambda rngs: PatchMerger(vision, norm_merged=False, rngs=rngs, **options)
            ),
        }
        if size := vision.position_embeddings:
            modules["visual/pos_embed"] = Module(
                lambda rngs: nnx.Embed(size, vision.width, rngs=rngs, **options)
            )
        if mergers := len(vision.deepstack_layers):
            modules["visual/deepstack_merger_list"] = Module(
                lambda rngs: PatchMerger(vision, norm_merged=True, rngs=rngs, **options), mergers
            )
        return modules

    def rope_axes(self) -> tuple[int, ...]:
        return mrope_axes(self.config.text)

    def prompt_positions(self, prompts: PromptBatch):
        return prompts.model_inputs.positions

    def text_positions(self, position):
        return jnp.broadcast_to(position[..., None], (*position.shape, 3))

    def prepare(
        self, input_ids, attention_mask=None, *, pixel_values=None, image_grid_thw=None, **unused
    ) -> PromptBatch:
        """A Hugging Face processor's numpy output as a PromptBatch; padding on either side."""
        if unused.get("pixel_values_videos") is not None:
            raise NotImplementedError("videos are not supported; pass images")
        text = super().prepare(input_ids, attention_mask)
        pixels, grids = _split_images(
            text.tokens, text.mask, pixel_values, image_grid_thw, self.config
        )
        model_inputs, following = inputs.lay_out(text.tokens, text.mask, pixels, grids, self.config)
        return dataclasses.replace(text, next_position=following, model_inputs=model_inputs)

    def embed_prompts(self, params, prompts: PromptBatch):
        """Embeddings, pictures in their places, and what DeepStack adds later."""
        x = self.embed_tokens(params, prompts.tokens)
        own: inputs.Inputs = prompts.model_inputs
        if own.images is None:
            return x, None
        levels = self.visual_tokens(params, own.images).astype(x.dtype)
        placed = functools.partial(put, places=own.image_slots)
        deep = jax.vmap(functools.partial(placed, jnp.zeros_like(x)))
        return placed(x, levels[0]), deep(levels[1:]) if len(levels) > 1 else None

    def visual_tokens(self, params: Params, images: inputs.Images) -> Float[Array, "1+E P KN D"]:
        """Every visual token of a row, in slot order (window by window), level by level.

        Level 0 stands in the place of the image tokens' embeddings. The E levels after it
        (DeepStack; most families have none) are added there after each of the first text layers.
        """
        config, visual = self.config.vision, params["visual"]
        x = self.module("visual/patch_embed", visual["patch_embed"])(
            jnp.asarray(images.patches, self.dtype)
        )
        if config.position_embeddings:
            table = visual["pos_embed"]["embedding"].astype(self.dtype)
            x += interpolated_positions(table, images.coords, images.grid).astype(x.dtype)
        rope = vision_rope(config, images.coords)

        def body(carry, layer, full, tap):
            x, taps = carry
            x = self.module("visual/blocks", layer)(x, rope, images.mask, full)
            if config.deepstack_layers:  # beyond the last tap: dropped
                taps = taps.at[tap].set(x, mode="drop")
            return (x, taps), None

        taps = jnp.zeros((len(config.deepstack_layers), *x.shape), x.dtype)
        (x, taps), _ = self.scan(body, (x, taps), visual["blocks"], *_vision_places(config))
        levels = self.module("visual/merger", visual["merger"])(x)[None]
        if config.deepstack_layers:
            merge = jax.vmap(
                lambda merger, x: self.module("visual/deepstack_merger_list", merger)(x)
            )
            levels = jnp.concatenate([levels, merge(visual["deepstack_merger_list"], taps)])
        return levels.reshape(len(levels), len(x), -1, config.out_width)


def _vision_places(config: VisionConfig):
    """Per vision layer: does it attend to the whole image, and which DeepStack tap it feeds."""
    layers = np.arange(config.depth)
    taps = np.full(config.depth, len(config.deepstack_layers))
    taps[list(config.deepstack_layers)] = np.arange(len(config.deepstack_layers))
    return np.isin(layers, config.full_attention_layers), taps


def mrope_axes(config: TextConfig) -> tuple[int, ...]:
    """Which position axis (0 temporal, 1 height, 2 width) each rotary frequency reads."""
    sections = config.mrope_section
    if not config.mrope_interleaved:
        return tuple(axis % 3 for axis, size in enumerate(sections) for _ in range(size))
    # by turns; an axis whose section is used up leaves its turns to the temporal one
    frequencies = range(config.head_dim // 2)
    return tuple(f % 3 if f < 3 * sections[f % 3] else 0 for f in frequencies)


def _split_images(tokens, mask, pixel_values, image_grid_thw, config: QwenVLConfig):
    """Assigns the processor's flat list of images to rows, by counting their image tokens."""
    rows: list[tuple[list, list]] = [([], []) for _ in tokens]
    if image_grid_thw is not None:
        merge = config.vision.merge_size
        pending = ((tokens == config.image_token_id) & mask).sum(1)
        row, start = 0, 0
        for frames, height, width in np.asarray(image_grid_thw):
            if frames != 1:
                raise NotImplementedError("videos are not supported; pass images")
            size = int(height * width)
            while row < len(rows) - 1 and pending[row] < size // merge**2:
                row += 1
            pending[row] -= size // merge**2
            rows[row][0].append(np.asarray(pixel_values[start : start + size], np.float32))
            rows[row][1].append((int(height), int(width)))
            start += size
    return [r[0] for r in rows], [r[1] for r in rows]
