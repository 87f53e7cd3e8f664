"""What the three Qwen-VL families call their tensors."""

from __future__ import annotations

from rdbcl_jax.models.qwen_vl.config import QwenVLConfig
from rdbcl_jax.models.weights import WeightMap

_QWEN2 = {r"merger\.fc1": "merger.mlp.0", r"merger\.fc2": "merger.mlp.2"}
_QWEN3 = {r"\bfc([12])\b": r"linear_fc\1", r"\bln_q\b": "norm"}
_RENAMED = {"qwen2_vl": _QWEN2, "qwen2_5_vl": _QWEN2, "qwen3_vl": _QWEN3}
_PREFIXES = {"visual": "visual", "language_model": "model"}
_NESTED_PREFIXES = {"visual": "model.visual", "language_model": "model.language_model"}
# transformers 5 nests what was published flat; Qwen3-VL was published nested
_ALIASES = {r"^model\.visual\.": "visual.", r"^(model\.)?language_model\.": "model."}
_NESTED_ALIASES = {
    r"^(visual|language_model)\.": r"model.\1.",
    r"^model\.(?!visual\.|language_model\.)": "model.language_model.",
}


def weight_map(config: QwenVLConfig, stacks: tuple[str, ...]) -> WeightMap:
    v = config.vision
    patch = (v.width, v.channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    nested = config.family == "qwen3_vl"
    return WeightMap(
        stacks,
        _NESTED_PREFIXES if nested else _PREFIXES,
        _RENAMED[config.family],
        {"visual.patch_embed.proj.weight": patch},
        _NESTED_ALIASES if nested else _ALIASES,
    )
