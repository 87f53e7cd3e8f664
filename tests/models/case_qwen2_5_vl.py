"""A tiny Qwen2.5-VL, whose windows do not divide every grid."""

import transformers

from tests.models.qwen import TEXT, VISION, case

OWN = dict(
    hidden_size=24,
    intermediate_size=40,
    out_hidden_size=32,
    window_size=16,
    fullatt_block_indexes=[1, 3],
)
CASE = case(
    transformers.Qwen2_5_VLConfig,
    transformers.Qwen2_5_VLForConditionalGeneration,
    TEXT,
    VISION | OWN,
)
