"""What all families read alike from a checkpoint's config.json and generation_config.json."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rdbcl_jax.models.rope import Rope, read_rope


class ConfigFiles(NamedTuple):
    """The two files. What config.json leaves out is there by the default of transformers' class.

    Attributes:
      content: config.json, word for word.
      raw: config.json in transformers' own layout, which nests the parts of a model.
      text: the part of `raw` that describes the language model, and what stands beside it.
      special: the special tokens that the files name.
    """

    path: pathlib.Path
    content: str
    raw: dict[str, Any]
    text: dict[str, Any]
    special: dict[str, Any]

    @property
    def model_type(self) -> str:
        return self.raw["model_type"]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        eos = self.special["eos_token_id"]
        return tuple(eos) if isinstance(eos, list) else (eos,) if eos is not None else ()

    @property
    def pad_token_id(self) -> int | None:
        return self.special["pad_token_id"]

    @property
    def rope(self) -> dict[str, Any]:
        return self.text["rope_parameters"]

    def read_rope(self, parameters: Mapping[str, Any], head_dim: int) -> Rope:
        """As `rope.read_rope`, and errors name the file."""
        try:
            return read_rope(parameters, head_dim, self.text["max_position_embeddings"])
        except ValueError as error:
            raise ValueError(f"{self.path / 'config.json'}: {error}") from None

    def decoder_fields(self) -> dict[str, Any]:
        """Fields of a `DecoderConfig`, but `qkv_bias` and `qk_norm`, which no file says."""
        text = self.text
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return {
            "vocab_size": text["vocab_size"],
            "depth": text["num_hidden_layers"],
            "width": text["hidden_size"],
            "mlp_width": text["intermediate_size"],
            "heads": text["num_attention_heads"],
            "kv_heads": text["num_key_value_heads"],
            "head_dim": head_dim,
            # of layers that see the whole text, where kinds of layers differ
            "rope": self.read_rope(self.rope.get("full_attention") or self.rope, head_dim),
            "norm_eps": text["rms_norm_eps"],
            # either place switches it on; a head of its own in the weights switches it off again
            "tied": bool(self.raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        }


def read_files(path: str | pathlib.Path) -> ConfigFiles:
    """Reads both files; the second may be missing.

    Raises ValueError for what transformers' class refuses, and for options that no published
    checkpoint of these families switches on: better an error than wrong logits.
    """
    path = pathlib.Path(path)
    file = path / "config.json"
    content = file.read_text()
    generation_file = path / "generation_config.json"
    generation = json.loads(generation_file.read_text()) if generation_file.exists() else {}
    written = json.loads(content)
    raw = _completed(file, written)
    text = {**raw, **raw.get("text_config", {})}
    # what a file says goes before a class's default
    places = (generation, written.get("text_config", {}), written, text)
    special = {
        name: next((p[name] for p in places if p.get(name) is not None), None)
        for name in ("eos_token_id", "pad_token_id")
    }
    # Gemma's is called hidden_activation, and read by its own family
    activation = "silu" if "hidden_activation" in text else text.get("hidden_act", "silu")
    problems = {
        "use_sliding_window": text.get("use_sliding_window", False),
        "attention_bias": text.get("attention_bias", False),
        f"text_config.hidden_act {activation!r}": activation not in ("silu", "swish"),
    }
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{file}: {', '.join(found)} is not supported")
    return ConfigFiles(path, content, raw, text, special)


def _completed(file: pathlib.Path, written: dict[str, Any]) -> dict[str, Any]:
    """A config as transformers' class has it: defaults filled in, one layout, rotary embeddings
    always in `rope_parameters`."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[written["model_type"]].from_dict(written).to_dict()
    except Exception as error:  # its validators raise what they like
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: transformers cannot read it: {reason}") from error


def write_image_options(path: str | pathlib.Path, **options: Any) -> None:
    """Sets options of a directory's image processor, in whichever files hold them: in
    processor_config.json newer versions of transformers nest what preprocessor_config.json has."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = pathlib.Path(path) / name
        content = json.loads(file.read_text()) if file.exists() else {}
        if part := content.get("image_processor") if name.startswith("processor") else content:
            part |= options
            file.write_text(json.dumps(content, indent=2) + "\n")


def without_tie(content: str) -> str:
    """A config.json whose head is its own, and not the embedding."""
    raw = json.loads(content or "{}")
    parts = [raw, *(part for part in (raw.get("text_config"),) if part)]
    for part in parts:
        part["tie_word_embeddings"] = False
    return json.dumps(raw, indent=2) + "\n"
