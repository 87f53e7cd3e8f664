"""The model families, by the `model_type` of a checkpoint's config.json.

A new one is a folder whose `__init__.py` defines `FAMILY`, and a line here.
"""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

from rdbcl_jax.json_files import read_object
from rdbcl_jax.models.config_files import read_tokenizer_files, readable
from rdbcl_jax.models.interface import VLM, Family, ModelConfig, Processor

FAMILIES = {  # folder: model types
    "qwen_vl": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    "gemma3": ("gemma3", "gemma3_text"),
    "qwen_text": ("qwen2", "qwen3"),
    "internvl": ("internvl",),
    "smolvlm": ("smolvlm", "idefics3"),
    "llava_onevision": ("llava_onevision",),
}
MODEL_TYPES = tuple(name for names in FAMILIES.values() for name in names)
_FOREIGN = "the tensors of its own code (transformers' format is in directories named -hf)"
_OTHERS = {  # near relatives, and what they have that no family here has
    "internvl_chat": _FOREIGN,
    "llava_qwen": _FOREIGN,
    "qwen3_moe": "a mixture of experts",
    "qwen3_vl_moe": "a mixture of experts",
    "qwen3_5": "layers of linear attention (gated delta rule)",
    "qwen3_5_moe": "layers of linear attention (gated delta rule) and a mixture of experts",
}


def family_of(path: str | pathlib.Path) -> Family:
    """The family of a checkpoint directory.

    Raises ValueError for an unknown `model_type`.
    """
    file = pathlib.Path(path) / "config.json"
    model_type = read_object(file).get("model_type")
    if model_type not in MODEL_TYPES:
        why = f", which has {_OTHERS[model_type]}" if model_type in _OTHERS else ""
        raise ValueError(
            f"{file}: model_type is {model_type!r}{why}, expected one of {MODEL_TYPES}"
        )
    return family(model_type)


def family(model_type: str) -> Family:
    """The family with a `model_type`, one of `MODEL_TYPES`."""
    folder = next(folder for folder, names in FAMILIES.items() if model_type in names)
    return importlib.import_module(f"rdbcl_jax.models.{folder}").FAMILY


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """Reads `path`/config.json (and generation_config.json for the end tokens).

    Raises ValueError for an unknown `model_type`, and for options that are not supported.
    """
    with readable(path, "its config.json"):
        return family_of(path).read_config(path)


def from_config(path: str | pathlib.Path, **options: Any) -> VLM:
    """The model of a checkpoint directory, whose weights are not read: they may be missing.

    Args:
      options: `dtype`, `param_dtype`, `remat`, `attention` and `mesh`, as in `from_pretrained`.
    """
    config = read_config(path)
    with readable(path, "its config.json"):
        return family_of(path).model(config, **options)


def read_tokenizer(path: str | pathlib.Path) -> Any:
    """The tokenizer of a checkpoint directory, with the chat template that transformers' processors
    take: that of processor_config.json, chat_template.json or chat_template.jinja, in this order,
    else the tokenizer's own.

    Raises ValueError where there is none at all.
    """
    path = pathlib.Path(path)
    tokenizer = read_tokenizer_files(path)
    for name in ("processor_config.json", "chat_template.json"):
        file = path / name
        if found := read_object(file, {}).get("chat_template"):
            tokenizer.chat_template = found
            return tokenizer
    if (raw := path / "chat_template.jinja").exists():
        tokenizer.chat_template = raw.read_text()
    if not tokenizer.chat_template:
        raise ValueError(
            f"{path}: no chat template, neither with the tokenizer nor in chat_template.jinja, "
            "chat_template.json or processor_config.json; expected a model tuned to chats"
        )
    return tokenizer


def save_limits(path: str | pathlib.Path, **limits: int | None) -> None:
    """Writes a run's `min_pixels` and `max_pixels` (None: not set) into the processor's files of a
    directory, so that whatever reads it resizes images as the run did."""
    found = family_of(path)
    if found.save_limits is not None and any(limits.values()):
        found.save_limits(path, **limits)


def read_processor(path: str | pathlib.Path, **options: Any) -> Processor:
    """The processor of a checkpoint directory; options as in `Family.processor`."""
    return family_of(path).processor(path, read_config(path), **options)
