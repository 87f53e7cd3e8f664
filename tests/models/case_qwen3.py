"""A tiny Qwen3, text only."""

import transformers

from tests.models.qwen import text_case

# heads are not hidden_size / their number wide
CASE = text_case(transformers.Qwen3Config, transformers.Qwen3ForCausalLM, head_dim=12)
