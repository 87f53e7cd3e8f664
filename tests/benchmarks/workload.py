"""What is measured: a model's sizes and a step's, the same numbers for every program.

Standard library only, for the peers run in interpreters of their own.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Workload:
    """A GRPO step on P prompts of L tokens with G responses of exactly T tokens each.

    The model is a Qwen2.5 decoder with a tied head: biases on query, key and value, grouped-query
    attention, SwiGLU, RMS norm. With `image_grid` every prompt begins with one picture of so many
    patches (rows, columns), and the model has a vision tower.
    """

    name: str
    prompts: int  # P
    samples: int  # G
    prompt_length: int  # L, visual tokens included
    response_length: int  # T
    depth: int
    width: int  # D
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int  # V
    dtype: str = "float32"  # of activations and matrix products; parameters are float32
    image_grid: tuple[int, int] | None = None
    learning_rate: float = 1e-6
    kl_beta: float = 0.04  # not 0: every program runs its reference model
    chunk_size: int = 1024  # tokens whose logits exist at one time, where a program can choose

    def replace(self, **changes) -> Workload:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> Workload:
        grid = fields.get("image_grid")
        return cls(**{**fields, "image_grid": tuple(grid) if grid else None})


# 0.2 M, 5.2 M, 47 M and 494 M parameters
SMALL = Workload("small", 2, 4, 32, 32, 2, 64, 256, 4, 2, 16, 1024)
MEDIUM = Workload("medium", 4, 4, 128, 128, 4, 256, 768, 4, 2, 64, 8192)
LARGE = Workload("large", 2, 8, 512, 128, 8, 512, 2048, 8, 2, 64, 32768)
HALF_BILLION = Workload("0.5B", 8, 8, 512, 256, 24, 896, 4864, 14, 2, 64, 151936, "bfloat16")

SIZES = {w.name: w for w in (SMALL, MEDIUM, LARGE, HALF_BILLION)}
