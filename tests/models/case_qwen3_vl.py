"""A tiny Qwen3-VL, with interleaved M-RoPE and DeepStack."""

import transformers

from tests.models.qwen import TEXT, VISION, case

ROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[3, 2, 1], mrope_interleaved=True)
OWN = dict(
    hidden_size=24,
    intermediate_size=40,
    out_hidden_size=32,
    num_position_embeddings=49,
    deepstack_visual_indexes=[0, 2],
)
CASE = case(
    transformers.Qwen3VLConfig,
    transformers.Qwen3VLForConditionalGeneration,
    TEXT | dict(head_dim=12, rope_parameters=ROPE),  # heads are not hidden_size / their number wide
    VISION | OWN,
)
