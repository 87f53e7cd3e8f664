"""A tiny Qwen3, text only: the shared decoder alone."""

import transformers

from tests.models.contract import Case
from tests.models.qwen import TEXT

ROPE = {"rope_type": "default", "rope_theta": 1e4}
SIZES = TEXT | dict(rope_parameters=ROPE, head_dim=12)  # not hidden_size / heads


def config(tied, **options):
    return transformers.Qwen3Config(**{**SIZES, **options}, tie_word_embeddings=tied)


CASE = Case(
    model_class=transformers.Qwen3ForCausalLM,
    config=config,
    rows=(([9], "left"), ([5], "right"), ([7], "left")),
    prompts=(([9], "left"), ([5], "left"), ([7], "left")),
)
