"""What is measured: a model's sizes and a step's, the same numbers for every program.

Standard library only, for the peers run in interpreters of their own.
"""

from __future__ import annotations

import dataclasses

SPECIAL = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH, MERGE, TEMPORAL, WINDOW = 14, 2, 2, 112  # pixels, patches, frames, pixels: Qwen2.5-VL's


@dataclasses.dataclass(frozen=True)
class Vision:
    """A Qwen2.5-VL vision tower, and one square picture at the beginning of every prompt."""

    depth: int
    width: int
    mlp_width: int
    heads: int
    side: int  # of the picture, in patches
    full_attention_layers: tuple[int, ...]  # the others attend within windows

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture."""
        return (self.side // MERGE) ** 2


@dataclasses.dataclass(frozen=True)
class Workload:
    """A GRPO step on P prompts of L tokens with G responses of exactly T tokens each.

    With `mean_length` any of V / mean_length ids ends a response: then lengths are geometric, and T
    is the most.

    The model is a Qwen2.5 decoder with a tied head: biases on query, key and value, grouped-query
    attention, SwiGLU, RMS norm. The last ids of the vocabulary are set apart.
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
    vision: Vision | None = None
    mean_length: int | None = None
    prompts_at_once: int | None = None  # of an update, where a program takes a batch in parts
    learning_rate: float = 1e-6
    kl_beta: float = 0.04  # not 0: every program runs its reference model
    chunk_size: int = 1024  # tokens whose logits exist at one time, where a program can choose

    def replace(self, **changes) -> Workload:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> Workload:
        vision = fields["vision"]
        if vision:
            layers = tuple(vision["full_attention_layers"])
            vision = Vision(**{**vision, "full_attention_layers": layers})
        return cls(**{**fields, "vision": vision})

    @property
    def parts(self) -> int:
        """In how many a program that can takes a batch."""
        return self.prompts // (self.prompts_at_once or self.prompts)

    @property
    def words(self) -> int:
        """Tokens of a prompt that are text: all, or those after the picture and its two marks."""
        return self.prompt_length - (self.vision.tokens + 2 if self.vision else 0)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every `mean_length`th id that is not set apart."""
        last = min(self.special.values())
        return tuple(range(0, last, self.mean_length)) if self.mean_length else ()

    @property
    def special(self) -> dict[str, int]:
        """The ids that are set apart; no prompt's text holds one."""
        return {name: self.vocab_size - 1 - i for i, name in enumerate(SPECIAL)}


# 0.2 M, 5.2 M, 47 M and 494 M parameters
SMALL = Workload("small", 2, 4, 32, 32, 2, 64, 256, 4, 2, 16, 1024)
MEDIUM = Workload("medium", 4, 4, 128, 128, 4, 256, 768, 4, 2, 64, 8192)
LARGE = Workload("large", 2, 8, 512, 128, 8, 512, 2048, 8, 2, 64, 32768)
HALF_BILLION = Workload("0.5B", 4, 8, 256, 256, 24, 896, 4864, 14, 2, 64, 151936, "bfloat16")

# The medium decoder, most of whose responses are short.
LONG_TAILED = MEDIUM.replace(
    name="long-tailed", samples=8, response_length=256, mean_length=256 // 6, prompts_at_once=1
)

# The medium decoder with a picture of 448 × 448 pixels in every prompt, and the small one with one
# of 112 × 112: a vision tower for 1,024 patches (64) of a prompt that has 320 (40) tokens.
IMAGES = MEDIUM.replace(
    name="images",
    prompts=2,
    samples=8,
    prompt_length=320,
    vision=Vision(8, 256, 768, 4, 32, (3, 7)),
)
SMALL_IMAGES = SMALL.replace(
    name="small images", prompt_length=40, vision=Vision(2, 32, 64, 2, 8, (1,))
)

TEXT = (SMALL, MEDIUM, LARGE, HALF_BILLION)
SIZES = {w.name: w for w in (*TEXT, LONG_TAILED, SMALL_IMAGES, IMAGES)}
