"""Hugging Face checkpoint directories, in and out."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import save_file

from rdbcl_jax.models import lora
from rdbcl_jax.models.interface import VLM, Params
from rdbcl_jax.models.registry import from_config
from rdbcl_jax.models.weights import Source, WeightMap
from rdbcl_jax.sharding import param_shardings

_REMAT = {False: "none", True: "full"}
_SHARD_BYTES = 5 * 10**9
_INDEX = "model.safetensors.index.json"


def from_pretrained(
    path: str | pathlib.Path,
    *,
    dtype: str = "bfloat16",
    mesh: jax.sharding.Mesh | None = None,
    param_dtype: str | None = None,
    remat: str | bool = "none",
    attention: str = "auto",
) -> tuple[VLM, Params]:
    """Reads a checkpoint directory: config.json and one or several safetensors files.

    Tensors go one by one into (sharded) device arrays, and only the parts of each that this host
    places are read: beside the parameters it places, a host holds one tensor and the pages of one
    open file.

    Args:
      dtype: of activations; `param_dtype` of the parameters (default: the same).
      mesh: shards the parameters by `sharding.param_shardings`; None: one device.
      remat: what the backward pass recomputes: "none", each layer in "full", or all of it but the
        results of matrix products ("dots"); True means "full", False "none".
      attention: the backend, as in `attention.attend`.
    Raises:
      ValueError: an unknown model_type, or one list of all missing, unexpected and mis-shaped
        tensors.
    """
    path = pathlib.Path(path)
    model = from_config(
        path,
        dtype=dtype,
        param_dtype=param_dtype or dtype,
        remat=_REMAT.get(remat, remat),
        attention=attention,
        mesh=mesh,
    )
    checkpoint = _Checkpoint(path, model.weights)
    shapes = model.abstract_params()
    sources = _sources(model, shapes)
    checkpoint.check(jax.tree.leaves(sources))
    if mesh is None:
        shardings = jax.tree.map(lambda _: None, shapes)
    else:
        shardings = param_shardings(shapes, model.param_axes, mesh)
    load = functools.partial(_load, checkpoint)
    return model, jax.tree.map(load, sources, shapes, shardings)


def save_pretrained(
    path: str | pathlib.Path,
    model: VLM,
    params: Params,
    processor: Any = None,
    *,
    like: str | pathlib.Path | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a directory that `from_pretrained` and transformers read; adapters are merged.

    Where parameters are spread over several hosts all of them must call; the first one writes.

    Args:
      processor: a tokenizer or processor, saved beside the model by its own `save_pretrained`.
      like: a checkpoint directory whose other files (tokenizer, processor, generation defaults)
        are copied.
      shard_bytes: the largest size of a file; a full one is continued in the next. The host holds
        the tensors of one file at a time.
    """
    path = pathlib.Path(path)
    model, params = lora.merge(model, params)
    writes = jax.process_index() == 0
    if writes:
        path.mkdir(parents=True, exist_ok=True)
        if like is not None:
            _copy_other_files(pathlib.Path(like), path)
        _write_configs(path, model)
        if processor is not None:
            processor.save_pretrained(path)
    sources = jax.tree.leaves(_sources(model, params))
    pairs = list(zip(sources, jax.tree.leaves(params), strict=True))
    shards = _plan(pairs, shard_bytes)
    files = _file_names(len(shards))
    weight_map: dict[str, str] = {}
    for file, shard in zip(files, shards, strict=True):
        tensors = {name: _to_host(*where) for name, where in shard.items()}
        weight_map |= dict.fromkeys(tensors, file)
        if writes:
            save_file(tensors, path / file, {"format": "pt"})
    if writes:
        _finish(path, weight_map, sum(_nbytes(param) for _, param in pairs))


# -------------------------------------------------------------------------- reading


def _sources(model: VLM, params: Params) -> Any:
    """The `Source` of every parameter, in the structure of `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: model.weights.source_of(tuple(k.key for k in path), p.shape), params
    )


class _Checkpoint:
    """The tensors of a directory under their published names; one file is open at a time."""

    def __init__(self, path: pathlib.Path, weights: WeightMap):
        self.path, self.weights = path, weights
        if (path / _INDEX).exists():
            weight_map = json.loads((path / _INDEX).read_text())["weight_map"]
        elif (path / "model.safetensors").exists():
            with safe_open(path / "model.safetensors", framework="numpy") as f:
                weight_map = dict.fromkeys(f.keys(), "model.safetensors")
        else:
            raise ValueError(f"{path}: neither model.safetensors nor {_INDEX}")
        self.places = {weights.published_name(n): (file, n) for n, file in weight_map.items()}
        self._open = functools.lru_cache(maxsize=1)(
            lambda file: safe_open(path / file, framework="numpy")
        )

    def slice(self, name: str) -> Any:
        """A lazy tensor: indexing it reads."""
        file, key = self.places[name]
        return self._open(file).get_slice(key)

    def check(self, sources: Sequence[Source]) -> None:
        """One error that lists everything wrong with the checkpoint's tensors."""
        expected = {name: s.checkpoint_shape for s in sources for name in s.names}
        files = sorted({file for file, _ in self.places.values()})
        problems = [f"missing file: {f}" for f in files if not (self.path / f).exists()]
        found = self._shapes(files)
        problems += [f"missing: {name}" for name in sorted(set(expected) - set(found))]
        # a tied head is sometimes written all the same
        unexpected = sorted(set(found) - set(expected) - {"lm_head.weight"})
        problems += [f"unexpected: {name}" for name in unexpected]
        problems += [
            f"shape of {name}: found {found[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        if problems:
            lines = "\n  ".join(problems)
            raise ValueError(f"{self.path} does not fit its config.json:\n  {lines}")

    def _shapes(self, files: Sequence[str]) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for file in files:
            if (self.path / file).exists():
                with safe_open(self.path / file, framework="numpy") as f:
                    for name in f.keys():  # noqa: SIM118 (not a dict)
                        shape = tuple(f.get_slice(name).get_shape())
                        shapes[self.weights.published_name(name)] = shape
        return shapes


def _load(checkpoint: _Checkpoint, source: Source, abstract, sharding) -> jax.Array:
    """One parameter, on its devices. A stack is filled layer by layer, in place."""
    if not source.stacked:
        return _load_tensor(checkpoint, source, source.names[0], abstract, sharding)
    layer = jax.ShapeDtypeStruct(abstract.shape[1:], abstract.dtype)
    layer_sharding = None
    if sharding is not None:  # the stack's own axis is never split
        layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    stack = jnp.zeros(abstract.shape, abstract.dtype, device=sharding)
    for i, name in enumerate(source.names):
        value = _load_tensor(checkpoint, source, name, layer, layer_sharding)
        # wait: dispatch ahead of the copies would hold several tensors on the host
        stack = jax.block_until_ready(_set_layer(sharding)(stack, i, value))
    return stack


def _load_tensor(checkpoint, source: Source, name: str, abstract, sharding) -> jax.Array:
    tensor = checkpoint.slice(name)
    parts: dict[tuple, np.ndarray] = {}  # replicas on this host share what was read

    def read(index):
        key = tuple((s.start, s.stop) for s in index)
        if key not in parts:
            parts[key] = source.read(tensor, index).astype(abstract.dtype, copy=False)
        return parts[key]

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(abstract.shape)))
    return jax.make_array_from_callback(abstract.shape, sharding, read)


@functools.lru_cache(maxsize=64)
def _set_layer(sharding):
    def put(stack, i, layer):
        return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


# -------------------------------------------------------------------------- writing

_Place = tuple[Source, jax.Array, int | None]  # a tensor: its source, the parameter, the layer


def _plan(pairs, shard_bytes: int) -> list[dict[str, _Place]]:
    """Which tensors go into which file: filled in order, up to `shard_bytes` each."""
    shards: list[dict[str, _Place]] = [{}]
    size = 0
    for name, place in _tensors(pairs):
        source, param, _ = place
        nbytes = _nbytes(param) // len(source.names)
        if size and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = place
        size += nbytes
    return shards


def _tensors(pairs) -> Iterator[tuple[str, _Place]]:
    for source, param in pairs:
        for i, name in enumerate(source.names):
            yield name, (source, param, i if source.stacked else None)


def _to_host(source: Source, param: jax.Array, layer: int | None) -> np.ndarray:
    value = param if layer is None else param[layer]
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        value = multihost_utils.process_allgather(value, tiled=True)
    return source.to_checkpoint(np.asarray(value))


def _nbytes(array) -> int:
    return array.size * array.dtype.itemsize


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _copy_other_files(like: pathlib.Path, path: pathlib.Path) -> None:
    for file in like.iterdir():
        is_weights = ".safetensors" in file.name or file.suffix in (".bin", ".pt", ".gguf")
        if file.is_file() and not is_weights and not (path / file.name).exists():
            shutil.copy2(file, path / file.name)


def _write_configs(path: pathlib.Path, model: VLM) -> None:
    config = model.config
    if not config.raw:
        raise ValueError("the model's config was not read from a config.json, so none can be saved")
    (path / "config.json").write_text(config.raw)
    generation = path / "generation_config.json"
    if not generation.exists():
        ids = {"eos_token_id": list(config.eos_token_ids), "pad_token_id": config.pad_token_id}
        known = {name: value for name, value in ids.items() if value not in (None, [])}
        generation.write_text(json.dumps(known, indent=2) + "\n")


def _finish(path: pathlib.Path, weight_map: dict[str, str], total: int) -> None:
    """Writes the index of several files, and removes what an earlier save left."""
    files = set(weight_map.values())
    for old in itertools.chain(path.glob("model*.safetensors"), path.glob(_INDEX)):
        if old.name not in files:
            old.unlink()
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
