"""What all families read alike from a checkpoint's config.json and generation_config.json."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class ConfigFiles(NamedTuple):
    """The two files, and of the first the part that describes the language model."""

    path: pathlib.Path
    content: str  # config.json, word for word
    raw: dict[str, Any]
    text: dict[str, Any]
    generation: dict[str, Any]

    @property
    def model_type(self) -> str:
        return self.raw["model_type"]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        eos = self.generation.get("eos_token_id", self.text.get("eos_token_id"))
        return tuple(eos) if isinstance(eos, list) else (eos,) if eos is not None else ()

    @property
    def pad_token_id(self) -> int | None:
        return self.generation.get("pad_token_id", self.text.get("pad_token_id"))

    @property
    def rope(self) -> dict[str, Any]:
        return self.text.get("rope_parameters") or self.text.get("rope_scaling") or {}

    def decoder_fields(self) -> dict[str, Any]:
        """Fields of a `DecoderConfig`, but `qkv_bias` and `qk_norm`, which no file says."""
        text = self.text
        return {
            "vocab_size": text["vocab_size"],
            "depth": text["num_hidden_layers"],
            "width": text["hidden_size"],
            "mlp_width": text["intermediate_size"],
            "heads": text["num_attention_heads"],
            "kv_heads": text["num_key_value_heads"],
            "head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            "rope_theta": float(self.rope.get("rope_theta") or text["rope_theta"]),
            "norm_eps": text["rms_norm_eps"],
            # either place switches it on, as in transformers
            "tied": bool(self.raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        }


def read_files(path: str | pathlib.Path, *, rope_types: Sequence[str]) -> ConfigFiles:
    """Reads both files; the second may be missing.

    Raises ValueError for options that no published checkpoint of these families switches on, and
    for rotary embeddings of other types: better an error than wrong logits.
    """
    path = pathlib.Path(path)
    content = (path / "config.json").read_text()
    generation_file = path / "generation_config.json"
    generation = json.loads(generation_file.read_text()) if generation_file.exists() else {}
    raw = json.loads(content)
    # the published layout is flat; transformers 5 nests the text part and renames rope_scaling
    text = {**raw, **raw.get("text_config", {})}
    files = ConfigFiles(path, content, raw, text, generation)
    rope_type = files.rope.get("rope_type", files.rope.get("type", "default"))
    problems = {
        f"rope type {rope_type!r}": rope_type not in rope_types,
        "use_sliding_window": text.get("use_sliding_window", False),
        "attention_bias": text.get("attention_bias", False),
    }
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{path / 'config.json'}: {', '.join(found)} is not supported")
    return files
