"""A tiny Qwen2-VL."""

import transformers

from tests.models.qwen import TEXT, VISION, case

CASE = case(
    transformers.Qwen2VLConfig,
    transformers.Qwen2VLForConditionalGeneration,
    TEXT,
    VISION | dict(embed_dim=24, mlp_ratio=2, hidden_size=32),
)
