"""Hugging Face checkpoint directories, in and out."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.flax import save_file

from rdbcl_jax.models.qwen_vl.config import read_config
from rdbcl_jax.models.qwen_vl.model import Params, QwenVL
from rdbcl_jax.models.qwen_vl.weights import Source, published_name, source_of

_REMAT = {False: "none", True: "full"}
_SHARD_BYTES = 5 * 10**9


def from_pretrained(
    path: str | pathlib.Path,
    *,
    dtype: str = "bfloat16",
    mesh: jax.sharding.Mesh | None = None,
    param_dtype: str | None = None,
    remat: str | bool = "none",
) -> tuple[QwenVL, Params]:
    """Reads a checkpoint directory: config.json and one or several safetensors files.

    Parameters are read one by one straight into (sharded) device arrays, so the host holds one
    stacked parameter at a time.

    Args:
      dtype: of activations; `param_dtype` of the parameters (default: the same).
      mesh: shards the parameters by `sharding.param_sharding`; None: one device.
    Raises:
      ValueError: an unknown model_type, or one list of all missing, unexpected and mis-shaped
        tensors.
    """
    path = pathlib.Path(path)
    model = QwenVL(read_config(path), dtype, param_dtype or dtype, _REMAT.get(remat, remat))
    files = _tensor_files(path, model.config.family)
    shapes = model.abstract_params()
    sources = jax.tree_util.tree_map_with_path(
        lambda p, a: source_of(tuple(k.key for k in p), a.shape, model.config), shapes
    )
    _check(path, model.config.family, files, jax.tree.leaves(sources))
    read = _reader(path, files)
    if mesh is None:
        place = jnp.asarray
        return model, jax.tree.map(lambda s, a: place(_param(s, a, read)), sources, shapes)
    from rdbcl_jax.sharding import param_shardings

    def load(source, abstract, sharding):
        value = _param(source, abstract, read)
        return jax.make_array_from_callback(abstract.shape, sharding, lambda i: value[i])

    return model, jax.tree.map(load, sources, shapes, param_shardings(shapes, mesh))


def save_pretrained(
    path: str | pathlib.Path, model: QwenVL, params: Params, *, like: str | pathlib.Path
) -> None:
    """Writes a directory that `from_pretrained` and transformers read.

    Config, tokenizer and processor files are copied from the directory `like`, which the model
    came from; tensors are sharded above 5 GB.
    """
    path, like = pathlib.Path(path), pathlib.Path(like)
    path.mkdir(parents=True, exist_ok=True)
    for file in like.iterdir():
        if file.is_file() and ".safetensors" not in file.name and file.parent != path:
            shutil.copy2(file, path / file.name)
    tensors = {}
    for key_path, param in jax.tree_util.tree_leaves_with_path(params):
        source = source_of(tuple(k.key for k in key_path), param.shape, model.config)
        for i, name in enumerate(source.names):
            value = np.asarray(param[i] if source.stacked else param)
            tensors[name] = source.to_checkpoint(value)
    _write_sharded(path, tensors)


# -------------------------------------------------------------------------- pieces


def _tensor_files(path: pathlib.Path, family: str) -> dict[str, tuple[str, str]]:
    """Published tensor name → (file, name in the file)."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
    elif (path / "model.safetensors").exists():
        with safe_open(path / "model.safetensors", framework="numpy") as f:
            weight_map = dict.fromkeys(f.keys(), "model.safetensors")
    else:
        raise ValueError(f"{path}: neither model.safetensors nor model.safetensors.index.json")
    return {published_name(name, family): (file, name) for name, file in weight_map.items()}


def _check(path, family, files, sources: list[Source]) -> None:
    """One error that lists everything wrong with the checkpoint's tensors."""
    expected = {name: s.checkpoint_shape for s in sources for name in s.names}
    found = {}
    for file in sorted({file for file, _ in files.values()}):
        with safe_open(path / file, framework="numpy") as f:
            for name in f.keys():  # noqa: SIM118 (not a dict)
                found[published_name(name, family)] = tuple(f.get_slice(name).get_shape())
    # a tied head is sometimes written all the same
    unexpected = sorted(set(found) - set(expected) - {"lm_head.weight"})
    problems = [f"missing: {name}" for name in sorted(set(expected) - set(found))]
    problems += [f"unexpected: {name}" for name in unexpected]
    problems += [
        f"shape of {name}: found {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit its config.json:\n  " + "\n  ".join(problems))


def _reader(path: pathlib.Path, files: dict[str, tuple[str, str]]) -> Callable[[str], Any]:
    def read(name: str):
        file, key = files[name]
        with safe_open(path / file, framework="flax") as f:  # flax: numpy lacks bfloat16
            return np.asarray(f.get_tensor(key))

    return read


def _param(source: Source, abstract: jax.ShapeDtypeStruct, read) -> np.ndarray:
    if not source.stacked:
        return np.asarray(source.to_param(read(source.names[0])), abstract.dtype)
    out = np.empty(abstract.shape, abstract.dtype)
    for i, name in enumerate(source.names):
        out[i] = source.to_param(read(name))
    return out


def _write_sharded(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    metadata = {"format": "pt"}
    if len(shards) == 1:
        save_file(shards[0], path / "model.safetensors", metadata)
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, path / file, metadata)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
