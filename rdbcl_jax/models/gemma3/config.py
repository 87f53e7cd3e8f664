"""The shape of a Gemma 3 model, read from a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import math
import pathlib

from rdbcl_jax.models.config_files import ConfigFiles, read_files
from rdbcl_jax.models.decoder import DecoderConfig
from rdbcl_jax.models.layers import ACTIVATIONS
from rdbcl_jax.models.siglip import SiglipConfig, siglip_config
from rdbcl_jax.models.text_only import TextModelConfig


@dataclasses.dataclass(frozen=True)
class Gemma3Config:
    vision: SiglipConfig
    text: DecoderConfig
    image_tokens: int  # visual tokens of a picture: a square of averages
    image_token_id: int
    image_start_id: int
    image_end_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    raw: str = dataclasses.field(default="", repr=False)  # config.json, word for word

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids that stand for pictures: the sampler never emits them."""
        return self.image_token_id, self.image_start_id, self.image_end_id


def read_config(path: str | pathlib.Path) -> Gemma3Config | TextModelConfig:
    """Reads `path`/config.json (and generation_config.json for the end tokens).

    Raises ValueError for options that are not supported.
    """
    files = read_files(path)
    text = _decoder(files)
    if files.model_type == "gemma3_text":
        return TextModelConfig(text, files.eos_token_ids, files.pad_token_id, files.content)
    raw, vision = files.raw, siglip_config(files.raw["vision_config"])
    tokens = raw["mm_tokens_per_image"]
    side = math.isqrt(tokens)
    _refuse(
        files,
        {
            "vision_config.vision_use_head": raw["vision_config"]["vision_use_head"],
            f"mm_tokens_per_image {tokens} of {vision.side} × {vision.side} patches": (
                side**2 != tokens or vision.side % side != 0
            ),
        },
    )
    return Gemma3Config(
        vision=vision,
        text=text,
        image_tokens=tokens,
        image_token_id=raw["image_token_index"],
        image_start_id=raw["boi_token_index"],
        image_end_id=raw["eoi_token_index"],
        eos_token_ids=files.eos_token_ids,
        pad_token_id=files.pad_token_id,
        raw=files.content,
    )


def _decoder(files: ConfigFiles) -> DecoderConfig:
    text, fields = files.text, files.decoder_fields()
    kinds = {"full_attention": False, "sliding_attention": True}
    # no published Gemma 3 caps its logits; transformers passes over the cap of attention in silence
    problems = {
        name: bool(text.get(name))
        for name in (
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "use_bidirectional_attention",
        )
    }
    problems |= {
        f"hidden_activation {text['hidden_activation']!r}": (
            text["hidden_activation"] not in ACTIVATIONS
        ),
        f"layer_types {text['layer_types']}": not set(text["layer_types"]) <= set(kinds),
    }
    _refuse(files, problems)
    return DecoderConfig(
        **fields,
        qkv_bias=False,
        qk_norm=True,
        activation=text["hidden_activation"],
        centred_norms=True,
        sandwich=True,
        embedding_scale=fields["width"] ** 0.5,
        score_scale=text["query_pre_attn_scalar"] ** -0.5,
        window=text["sliding_window"],
        sliding=tuple(kinds[kind] for kind in text["layer_types"]),
        sliding_rope=files.read_rope(files.rope["sliding_attention"], fields["head_dim"]),
    )


def _refuse(files: ConfigFiles, problems: dict[str, bool]) -> None:
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{files.path / 'config.json'}: {', '.join(found)} is not supported")
