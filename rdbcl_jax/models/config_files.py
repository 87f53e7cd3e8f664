"""What all families read alike from a checkpoint's config.json and generation_config.json."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rdbcl_jax.json_files import read_object
from rdbcl_jax.messages import line_of
from rdbcl_jax.models.rope import Rope, read_rope

_OBJECTS = (  # files of a checkpoint directory, each of them one JSON object
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
)


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
    written, generation = read_object(file), read_object(path / "generation_config.json", {})
    _check_whole(file, written)
    raw = _completed(file, written)
    text = {**raw, **raw.get("text_config", {})}
    # what a file says goes before a class's default
    places = (generation, written.get("text_config", {}), written, text)
    special = {
        name: next((p[name] for p in places if p.get(name) is not None), None)
        for name in ("eos_token_id", "pad_token_id")
    }
    for name, value in special.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(number, int) for number in ids):
            raise ValueError(
                f"{path}: {name} is {value!r} in config.json or generation_config.json, expected "
                "ids of tokens"
            )
    # transformers 5.6 to 5.19 write Idefics3's default, 128002, for models of any vocabulary, and
    # the embedding of a token that is not there is NaN
    pads = (p.get("pad_token_id") for p in places)
    special["pad_token_id"] = next((id for id in pads if is_token(id, text["vocab_size"])), None)
    # Gemma's is called hidden_activation, and read by its own family
    activation = "silu" if "hidden_activation" in text else text.get("hidden_act", "silu")
    problems = {
        "use_sliding_window": text.get("use_sliding_window", False),
        "attention_bias": text.get("attention_bias", False),
        f"text_config.hidden_act {activation!r}": activation not in ("silu", "swish"),
    }
    if found := [name for name, is_set in problems.items() if is_set]:
        raise ValueError(f"{file}: {', '.join(found)} is not supported")
    return ConfigFiles(path, file.read_text(), raw, text, special)


def is_token(number: Any, vocab_size: int) -> bool:
    """Whether a vocabulary of this size has a token of this id."""
    return isinstance(number, int) and 0 <= number < vocab_size


def _check_whole(file: pathlib.Path, written: Mapping[str, Any]) -> None:
    """Raises ValueError for weights that are kept in fewer bits than any number here has."""
    parts = (written, written.get("text_config") or {})
    for part, name in itertools.product(parts, ("quantization_config", "compression_config")):
        if found := part.get(name) if isinstance(part, Mapping) else None:
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            how = f" ({method})" if method else ""
            raise ValueError(
                f"{file}: {name} says that the weights are quantised{how}, which cannot learn here;"
                " use the checkpoint that they were made from, in bfloat16, float16 or float32"
            )


@contextlib.contextmanager
def readable(path: str | pathlib.Path, what: str) -> Iterator[None]:
    """Whatever goes wrong within becomes one line that names the directory, or its file that is no
    JSON: transformers' readers raise what they like, and so does code that meets other types than
    it expects."""
    path = pathlib.Path(path)
    try:
        yield
    except Exception as error:
        for name in _OBJECTS:
            read_object(path / name, {})
        if isinstance(error, ValueError | OSError) and str(path) in str(error):
            raise
        reason = line_of(error)[:300]
        raise ValueError(
            f"{path}: {what} cannot be read: {type(error).__name__}: {reason}"
        ) from error


def read_tokenizer_files(path: str | pathlib.Path) -> Any:
    """The tokenizer of a checkpoint directory; of none but its files."""
    from transformers import AutoTokenizer

    with readable(path, "its tokenizer"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def read_image_files(folder: str, kind: str, path: str | pathlib.Path, **options: Any) -> Any:
    """The image processor of a checkpoint directory: that of transformers with this name, in its
    PIL backend. `AutoImageProcessor` would take torchvision's where that is installed, and resized
    pixels would then differ between machines.

    Args:
      folder: of `transformers.models`, whose module has the class. The package itself asks for
        torchvision, from 5.6 to 5.19, before it shows SmolVLM's.
    """
    with readable(path, "its image processor"):
        module = importlib.import_module(
            f"transformers.models.{folder}.image_processing_pil_{folder}"
        )
        return getattr(module, f"{kind}ImageProcessorPil").from_pretrained(path, **options)


def _completed(file: pathlib.Path, written: dict[str, Any]) -> dict[str, Any]:
    """A config as transformers' class has it: defaults filled in, one layout, rotary embeddings
    always in `rope_parameters`."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[written["model_type"]].from_dict(written).to_dict()
    except Exception as error:  # its validators raise what they like
        reason = line_of(error)
        raise ValueError(f"{file}: transformers cannot read it: {reason}") from error


def write_image_options(path: str | pathlib.Path, **options: Any) -> None:
    """Sets options of a directory's image processor, in whichever files hold them: in
    processor_config.json newer versions of transformers nest what preprocessor_config.json has."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = pathlib.Path(path) / name
        content = read_object(file, {})
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
