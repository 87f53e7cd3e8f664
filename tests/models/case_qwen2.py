"""A tiny Qwen2, text only."""

import transformers

from tests.models.qwen import text_case

CASE = text_case(transformers.Qwen2Config, transformers.Qwen2ForCausalLM)
