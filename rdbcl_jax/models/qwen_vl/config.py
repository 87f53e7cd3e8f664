"""The shape of a Qwen-VL model, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from rdbcl_jax.models.config_files import read_files
from rdbcl_jax.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    depth: int
    width: int
    mlp_width: int
    heads: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    out_width: int
    window_size: int  # pixels; 0: every layer attends to the whole image
    full_attention_layers: tuple[int, ...]  # read only where window_size > 0
    norm: str  # "rms" or "layer"
    activation: str  # "silu" (gated), "quick_gelu" or "gelu_pytorch_tanh" (both plain)
    channels: int = 3
    patch_bias: bool = False
    position_embeddings: int = 0  # learned, a square grid of this many; 0: none
    deepstack_layers: tuple[int, ...] = ()  # whose outputs reach the first text layers too

    @property
    def patch_dim(self) -> int:
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_units(self) -> int:
        """Side of an attention window in visual tokens; 0 without windows."""
        return self.window_size // (self.patch_size * self.merge_size)


@dataclasses.dataclass(frozen=True)
class TextConfig(DecoderConfig):
    mrope_section: tuple[int, ...]  # frequencies that read the temporal, height and width position
    mrope_interleaved: bool  # frequencies take turns between the axes, not section by section


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    family: str
    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    raw: str = dataclasses.field(default="", repr=False)  # config.json, word for word

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids that stand for pictures: the sampler never emits them."""
        return (
            self.image_token_id,
            self.video_token_id,
            self.vision_start_token_id,
            self.vision_end_token_id,
        )


def read_config(path: str | pathlib.Path) -> QwenVLConfig:
    """Reads `path`/config.json (and generation_config.json for the end tokens).

    Raises ValueError for options that are not supported.
    """
    files = read_files(path)
    family, raw = files.model_type, files.raw
    is_third = family == "qwen3_vl"
    return QwenVLConfig(
        family=family,
        vision=_VISION_CONFIGS[family](raw["vision_config"]),
        text=TextConfig(
            **files.decoder_fields(),
            qkv_bias=not is_third,
            qk_norm=is_third,
            mrope_section=tuple(files.rope.get("mrope_section", _MROPE_SECTIONS[family])),
            mrope_interleaved=is_third,
        ),
        image_token_id=raw["image_token_id"],
        video_token_id=raw["video_token_id"],
        vision_start_token_id=raw["vision_start_token_id"],
        vision_end_token_id=raw["vision_end_token_id"],
        eos_token_ids=files.eos_token_ids,
        pad_token_id=files.pad_token_id,
        raw=files.content,
    )


def _qwen2_vision(raw: dict[str, Any]) -> VisionConfig:
    # here hidden_size is the language model's width
    common = _common_vision(raw) | {"width": raw["embed_dim"], "out_width": raw["hidden_size"]}
    return VisionConfig(
        **common,
        mlp_width=int(raw["embed_dim"] * raw["mlp_ratio"]),
        window_size=0,
        full_attention_layers=(),
        norm="layer",
        activation=raw["hidden_act"],
    )


def _qwen2_5_vision(raw: dict[str, Any]) -> VisionConfig:
    return VisionConfig(
        **_common_vision(raw),
        out_width=raw["out_hidden_size"],
        mlp_width=raw["intermediate_size"],
        window_size=raw["window_size"],
        full_attention_layers=tuple(raw["fullatt_block_indexes"]),
        norm="rms",
        activation=raw["hidden_act"],
    )


def _qwen3_vision(raw: dict[str, Any]) -> VisionConfig:
    return VisionConfig(
        **_common_vision(raw),
        out_width=raw["out_hidden_size"],
        mlp_width=raw["intermediate_size"],
        window_size=0,
        full_attention_layers=(),
        norm="layer",
        activation=raw["hidden_act"],
        patch_bias=True,
        position_embeddings=raw["num_position_embeddings"],
        deepstack_layers=tuple(raw["deepstack_visual_indexes"]),
    )


def _common_vision(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "depth": raw["depth"],
        "width": raw["hidden_size"],
        "heads": raw["num_heads"],
        "patch_size": raw["patch_size"],
        "temporal_patch_size": raw["temporal_patch_size"],
        "merge_size": raw["spatial_merge_size"],
        "channels": raw["in_channels"],
    }


_VISION_CONFIGS = {
    "qwen2_vl": _qwen2_vision,
    "qwen2_5_vl": _qwen2_5_vision,
    "qwen3_vl": _qwen3_vision,
}

_MROPE_SECTIONS = {  # transformers has these defaults in its models, not in their configs
    "qwen2_vl": (16, 24, 24),
    "qwen2_5_vl": (16, 24, 24),
    "qwen3_vl": (24, 20, 20),
}
