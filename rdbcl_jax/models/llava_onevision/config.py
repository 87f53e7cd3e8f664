"""The shape of a LLaVA-OneVision model, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

from rdbcl_jax.models.config_files import read_files
from rdbcl_jax.models.decoder import DecoderConfig
from rdbcl_jax.models.layers import ACTIVATIONS
from rdbcl_jax.models.siglip import SiglipConfig, siglip_config

DECODERS = ("qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    vision: SiglipConfig
    text: DecoderConfig
    layers_read: tuple[int, ...]  # the projector reads the outputs after so many layers
    projector_activation: str
    projector_bias: bool
    grids: tuple[tuple[int, int], ...]  # (height, width) in pixels that a picture may be tiled to
    most_tiles: int  # a picture of more is shrunk to the visual tokens of so many
    image_token_id: int
    video_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    raw: str = dataclasses.field(default="", repr=False)  # config.json, word for word

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids that stand for pictures: the sampler never emits them."""
        return self.image_token_id, self.video_token_id


def read_config(path: str | pathlib.Path) -> LlavaConfig:
    """Reads `path`/config.json (and generation_config.json for the end tokens).

    Raises ValueError for options that are not supported.
    """
    files = read_files(path)
    raw, vision = files.raw, files.raw["vision_config"]
    decoder, aspect = raw["text_config"]["model_type"], raw["vision_aspect_ratio"]
    layers = _layers(raw["vision_feature_layer"], vision["num_hidden_layers"])
    tiles = re.fullmatch(r"anyres_max_(\d+)", aspect)
    problems = {
        f"text_config.model_type {decoder!r} (expected one of {DECODERS})": decoder not in DECODERS,
        f"vision_config.model_type {vision['model_type']!r} (expected 'siglip_vision_model')": (
            vision["model_type"] != "siglip_vision_model"
        ),
        "vision_config.vision_use_head": vision.get("vision_use_head", False),
        # the other, "default", drops a class token, which SigLIP has not
        f"vision_feature_select_strategy {raw['vision_feature_select_strategy']!r}": (
            raw["vision_feature_select_strategy"] != "full"
        ),
        f"vision_feature_layer {raw['vision_feature_layer']}": layers is None,
        f"vision_aspect_ratio {aspect!r} (expected 'anyres_max_' and a number)": tiles is None,
        f"projector_hidden_act {raw['projector_hidden_act']!r}": (
            raw["projector_hidden_act"] not in ACTIVATIONS
        ),
    }
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{files.path / 'config.json'}: {', '.join(found)} is not supported")
    assert layers and tiles
    is_third = decoder == "qwen3"
    return LlavaConfig(
        vision=siglip_config(vision),
        text=DecoderConfig(**files.decoder_fields(), qkv_bias=not is_third, qk_norm=is_third),
        layers_read=layers,
        projector_activation=raw["projector_hidden_act"],
        projector_bias=raw["multimodal_projector_bias"],
        grids=tuple((int(height), int(width)) for height, width in raw["image_grid_pinpoints"]),
        most_tiles=int(tiles[1]),
        image_token_id=raw["image_token_index"],
        video_token_id=raw["video_token_index"],
        eos_token_ids=files.eos_token_ids,
        pad_token_id=files.pad_token_id,
        raw=files.content,
    )


def _layers(given: Any, depth: int) -> tuple[int, ...] | None:
    """How many layers come before each output that is read; -1 is the last. None: there is none."""
    indices = [given] if isinstance(given, int) else given
    if not indices or not all(isinstance(i, int) and -depth - 1 <= i <= depth for i in indices):
        return None
    return tuple(i % (depth + 1) for i in indices)
