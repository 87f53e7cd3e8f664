"""The shape of a Qwen-VL model, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any


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
    position_embeddings: int = 0  # learned, a square grid of so many; 0: none
    deepstack_layers: tuple[int, ...] = ()  # whose outputs reach the first text layers too

    @property
    def patch_dim(self) -> int:
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_units(self) -> int:
        """Side of an attention window in visual tokens; 0 without windows."""
        return self.window_size // (self.patch_size * self.merge_size)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    vocab_size: int
    depth: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, ...]  # frequencies that read the temporal, height and width position
    mrope_interleaved: bool  # frequencies take turns between the axes, not section by section
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    tied: bool


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

    Raises ValueError for an unknown `model_type`.
    """
    path = pathlib.Path(path)
    text = (path / "config.json").read_text()
    raw = json.loads(text)
    generation_file = path / "generation_config.json"
    generation = json.loads(generation_file.read_text()) if generation_file.exists() else {}
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{path / 'config.json'}: model_type is {family!r}, expected one of {FAMILIES}"
        )
    # the published layout is flat; transformers 5 nests the text part and renames rope_scaling
    text_raw = {**raw, **raw.get("text_config", {})}
    _refuse_variants(path, text_raw)
    eos = generation.get("eos_token_id", text_raw.get("eos_token_id"))
    return QwenVLConfig(
        family=family,
        vision=_VISION_CONFIGS[family](raw["vision_config"]),
        text=_text_config(text_raw, family, tied=_tied(raw, text_raw)),
        image_token_id=raw["image_token_id"],
        video_token_id=raw.get("video_token_id", -1),
        vision_start_token_id=raw.get("vision_start_token_id", -1),
        vision_end_token_id=raw.get("vision_end_token_id", -1),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,) if eos is not None else (),
        pad_token_id=generation.get("pad_token_id", text_raw.get("pad_token_id")),
        raw=text,
    )


def _tied(raw: dict[str, Any], text_raw: dict[str, Any]) -> bool:
    """Either place switches it on, as in transformers."""
    return bool(raw.get("tie_word_embeddings") or text_raw.get("tie_word_embeddings"))


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _refuse_variants(path: pathlib.Path, text: dict[str, Any]) -> None:
    """Options that no published checkpoint switches on: better an error than wrong logits."""
    rope_type = _rope(text).get("rope_type", _rope(text).get("type", "default"))
    problems = {
        f"rope type {rope_type!r}": rope_type not in ("default", "mrope"),
        "use_sliding_window": text.get("use_sliding_window", False),
        "attention_bias": text.get("attention_bias", False),
    }
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{path / 'config.json'}: {', '.join(found)} is not supported")


def _qwen2_vision(raw: dict[str, Any]) -> VisionConfig:
    # here hidden_size is the language model's width
    common = _common_vision(raw) | {"width": raw["embed_dim"], "out_width": raw["hidden_size"]}
    return VisionConfig(
        **common,
        mlp_width=int(raw["embed_dim"] * raw.get("mlp_ratio", 4)),
        window_size=0,
        full_attention_layers=(),
        norm="layer",
        activation=raw.get("hidden_act", "quick_gelu"),
    )


def _qwen2_5_vision(raw: dict[str, Any]) -> VisionConfig:
    return VisionConfig(
        **_common_vision(raw),
        out_width=raw["out_hidden_size"],
        mlp_width=raw["intermediate_size"],
        window_size=raw["window_size"],
        full_attention_layers=tuple(raw["fullatt_block_indexes"]),
        norm="rms",
        activation=raw.get("hidden_act", "silu"),
    )


def _qwen3_vision(raw: dict[str, Any]) -> VisionConfig:
    return VisionConfig(
        **_common_vision(raw),
        out_width=raw["out_hidden_size"],
        mlp_width=raw["intermediate_size"],
        window_size=0,
        full_attention_layers=(),
        norm="layer",
        activation=raw.get("hidden_act", "gelu_pytorch_tanh"),
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
        "channels": raw.get("in_channels", raw.get("in_chans", 3)),
    }


_VISION_CONFIGS = {
    "qwen2_vl": _qwen2_vision,
    "qwen2_5_vl": _qwen2_5_vision,
    "qwen3_vl": _qwen3_vision,
}
FAMILIES = tuple(_VISION_CONFIGS)  # as config.json names them


def _text_config(raw: dict[str, Any], family: str, tied: bool) -> TextConfig:
    rope = _rope(raw)
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    return TextConfig(
        vocab_size=raw["vocab_size"],
        depth=raw["num_hidden_layers"],
        width=raw["hidden_size"],
        mlp_width=raw["intermediate_size"],
        heads=raw["num_attention_heads"],
        kv_heads=raw["num_key_value_heads"],
        head_dim=head_dim,
        rope_theta=float(rope.get("rope_theta") or raw["rope_theta"]),
        mrope_section=tuple(rope["mrope_section"]),
        mrope_interleaved=family == "qwen3_vl",
        qkv_bias=family != "qwen3_vl",
        qk_norm=family == "qwen3_vl",
        norm_eps=raw["rms_norm_eps"],
        tied=tied,
    )
