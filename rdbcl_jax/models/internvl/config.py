"""The shape of an InternVL model, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from rdbcl_jax.models.config_files import read_files
from rdbcl_jax.models.decoder import DecoderConfig
from rdbcl_jax.models.layers import ACTIVATIONS

DECODERS = ("qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    depth: int
    width: int
    mlp_width: int
    heads: int
    patch_size: int  # pixels
    image_size: int  # pixels, of a tile's side
    norm: str  # "layer_norm" or "rms_norm"
    norm_eps: float
    activation: str
    qkv_bias: bool
    qk_norm: bool  # over all heads at once
    last_norm: bool  # there is one after the last layer
    layers_read: int  # layers before what the projector reads
    reads_last_norm: bool
    layer_scale: float  # at the start of training
    channels: int = 3

    @property
    def side(self) -> int:
        """Patches along a tile's side."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """C, the numbers of a patch."""
        return self.channels * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class InternVLConfig:
    vision: VisionConfig
    text: DecoderConfig
    merge_size: int  # merge² neighbouring patches become one visual token
    projector_activation: str
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    raw: str = dataclasses.field(default="", repr=False)  # config.json, word for word

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids that stand for pictures: the sampler never emits them."""
        return (self.image_token_id,)

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of a tile."""
        return (self.vision.side // self.merge_size) ** 2


def read_config(path: str | pathlib.Path) -> InternVLConfig:
    """Reads `path`/config.json (and generation_config.json for the end tokens).

    Raises ValueError for options that are not supported.
    """
    files = read_files(path)
    raw = files.raw
    decoder = raw["text_config"]["model_type"]
    merge = int(1 / raw["downsample_ratio"])
    try:
        vision = _vision(raw["vision_config"], raw["vision_feature_layer"])
    except ValueError as error:
        raise ValueError(f"{files.path / 'config.json'}: {error}") from None
    problems = {
        f"text_config.model_type {decoder!r} (expected one of {DECODERS})": decoder not in DECODERS,
        f"vision_feature_select_strategy {raw['vision_feature_select_strategy']!r}": (
            raw["vision_feature_select_strategy"] != "default"
        ),
        f"projector_hidden_act {raw['projector_hidden_act']!r}": (
            raw["projector_hidden_act"] not in ACTIVATIONS
        ),
        f"downsample_ratio {raw['downsample_ratio']} of {vision.side} patches": (
            vision.side % merge != 0 or merge * raw["downsample_ratio"] != 1
        ),
    }
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{files.path / 'config.json'}: {', '.join(found)} is not supported")
    is_third = decoder == "qwen3"
    return InternVLConfig(
        vision=vision,
        text=DecoderConfig(**files.decoder_fields(), qkv_bias=not is_third, qk_norm=is_third),
        merge_size=merge,
        projector_activation=raw["projector_hidden_act"],
        image_token_id=raw["image_token_id"],
        eos_token_ids=files.eos_token_ids,
        pad_token_id=files.pad_token_id,
        raw=files.content,
    )


def _vision(raw: dict[str, Any], layer: Any) -> VisionConfig:
    depth = raw["num_hidden_layers"]
    if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
        raise ValueError(
            f"vision_feature_layer {layer} is not supported, expected one layer of {depth}"
        )
    for name, supported in (
        ("use_mask_token", (False,)),
        ("use_absolute_position_embeddings", (True,)),
        ("norm_type", ("layer_norm", "rms_norm")),
        ("hidden_act", tuple(ACTIVATIONS)),
    ):
        if raw[name] not in supported:
            raise ValueError(
                f"vision_config.{name} {raw[name]!r} is not supported, expected one of {supported}"
            )
    return VisionConfig(
        depth=depth,
        width=raw["hidden_size"],
        mlp_width=raw["intermediate_size"],
        heads=raw["num_attention_heads"],
        patch_size=_side(raw, "patch_size"),
        image_size=_side(raw, "image_size"),
        norm=raw["norm_type"],
        norm_eps=raw["layer_norm_eps"],
        activation=raw["hidden_act"],
        qkv_bias=raw["attention_bias"],
        qk_norm=raw["use_qk_norm"],
        last_norm=not raw["use_mean_pooling"],
        layers_read=layer % (depth + 1),
        reads_last_norm=layer == -1 and not raw["use_mean_pooling"],
        layer_scale=raw["layer_scale_init_value"],
        channels=raw["num_channels"],
    )


def _side(raw: dict[str, Any], name: str) -> int:
    """Of a square, which the files give as one number or as two."""
    sides = set(raw[name]) if isinstance(raw[name], (list, tuple)) else {raw[name]}
    if len(sides) != 1:
        raise ValueError(f"vision_config.{name} {raw[name]} is not supported, expected a square")
    return sides.pop()
