"""Hugging Face checkpoint directories, in and out."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rdbcl_jax.finite import NotFinite, check_finite, first_not_finite
from rdbcl_jax.models import lora
from rdbcl_jax.models.config_files import is_token
from rdbcl_jax.models.interface import VLM, ModelConfig, Params
from rdbcl_jax.models.registry import from_config
from rdbcl_jax.models.weights import Source, WeightMap
from rdbcl_jax.sharding import param_shardings

_REMAT = {False: "none", True: "full"}
_SHARD_BYTES = 5 * 10**9
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as files call them
_KINDS = (*_DTYPES, "F64")  # of numbers that are weights as they are
# weights of any kind, what lies beside them, and what trainers keep
_OF_WEIGHTS = re.compile(
    r"\.(safetensors|bin|ckpt|gguf|h5|msgpack|onnx|pth?)(?![a-z0-9])|\.index\.json$"
    r"|^adapter_|^trainer_state\.json$"
)
_ADAPTER = "adapter_config.json"  # of peft
_ROWS = 4096  # of two matrices that are compared


def from_pretrained(
    path: str | pathlib.Path,
    *,
    dtype: str = "bfloat16",
    mesh: jax.sharding.Mesh | None = None,
    param_dtype: str | None = None,
    remat: str | bool = "none",
    attention: str = "auto",
    held: Callable[[VLM, Params], Params] = lambda model, params: params,
) -> tuple[VLM, Params]:
    """Reads a checkpoint directory: config.json and one or several safetensors files.

    Tensors go one by one into (sharded) device arrays, and only the parts of each that this host
    places are read: beside the parameters it places, a host holds one tensor and the pages of one
    open file.

    A head of its own in the files, different from the embedding, is kept even where config.json
    ties the two, as in transformers.

    Args:
      dtype: of activations; `param_dtype` of the parameters (default: the same).
      mesh: shards the parameters by `sharding.param_shardings`; None: one device.
      remat: what the backward pass recomputes: "none", each layer in "full", or all of it but the
        results of matrix products ("dots"); True means "full", False "none".
      attention: the backend, as in `attention.attend`.
      held: from the parameters' shapes to the same in the dtypes in which they are wanted.
    Raises:
      ValueError: an unknown model_type, a PEFT adapter in the directory, or one list of all
        missing, unexpected and mis-shaped tensors.
      NotFinite: a tensor that holds NaN or an infinite number, in `param_dtype` at least.
    """
    path = pathlib.Path(path)
    if (path / _ADAPTER).exists():
        raise ValueError(
            f"{path}: {_ADAPTER} says that a PEFT adapter belongs to the model, expected a model "
            "alone; merge it into the weights (peft's merge_and_unload, then save_pretrained), or "
            "where it is merged take the adapter_* files out"
        )
    model = from_config(
        path,
        dtype=dtype,
        param_dtype=param_dtype or dtype,
        remat=_REMAT.get(remat, remat),
        attention=attention,
        mesh=mesh,
    )
    checkpoint = _Checkpoint(path, model.weights)
    if model.tied and checkpoint.has_own_head():
        model = model.untied()  # whatever config.json says
    shapes = held(model, model.abstract_params())
    sources = _sources(model, shapes)
    checkpoint.check(jax.tree.leaves(sources))
    if mesh is None:
        shardings = jax.tree.map(lambda _: None, shapes)
    else:
        shardings = param_shardings(shapes, model.param_axes, mesh)
    load = functools.partial(_load, checkpoint)
    params = jax.tree.map(load, sources, shapes, shardings)
    _check_finite(path, sources, params)
    return model, params


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

    Where its config.json names a dtype, it names that of the parameters.

    Where parameters are spread over several hosts all of them must call; the first one writes.

    Args:
      processor: a tokenizer or processor, saved beside the model by its own `save_pretrained`.
      like: a checkpoint directory whose other files (tokenizer, processor, generation defaults)
        are copied.
      shard_bytes: the largest size of a file; a full one is continued in the next. The host holds
        the tensors of one file at a time.
    Raises:
      NotFinite: a parameter that holds NaN or an infinite number; nothing is written then.
    """
    path = pathlib.Path(path)
    model, params = lora.merge(model, params)
    check_finite(params, f"{path} is not written")
    writes = jax.process_index() == 0
    if writes:
        path.mkdir(parents=True, exist_ok=True)
        if like is not None:
            _copy_other_files(pathlib.Path(like), path)
        _write_configs(path, model, _most(params))
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


def stored_dtype(path: str | pathlib.Path) -> str:
    """The dtype of most numbers in a checkpoint directory, such as "bfloat16"; of its files' heads.

    Raises ValueError where they are of a dtype that policies are not written in.
    """
    found = _stored(path).most_common(1)[0][0]
    if found not in _DTYPES:
        raise ValueError(f"{path}: most weights are {found}, expected one of {', '.join(_DTYPES)}")
    return _DTYPES[found]


def exact_dtype(path: str | pathlib.Path) -> str:
    """In which the numbers of a checkpoint directory are what they are in its files."""
    found, *others = _stored(path)
    return "float32" if others else _DTYPES.get(found, "float32")


def _stored(path: str | pathlib.Path) -> collections.Counter[str]:
    """How many numbers of each dtype are in a checkpoint directory, of its files' heads."""
    path = pathlib.Path(path)
    counts: collections.Counter[str] = collections.Counter()
    files = {_SINGLE} if (path / _SINGLE).exists() else {*_read_index(path).values()}
    for file in sorted(files):
        with safe_open(path / file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                part = tensors.get_slice(name)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    return counts


def _sources(model: VLM, params: Params) -> Any:
    """The `Source` of every parameter, in the structure of `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: model.weights.source_of(tuple(k.key for k in path), p.shape), params
    )


class _Checkpoint:
    """The tensors of a directory under their published names; one file is open at a time.

    As in transformers a single file goes before an index, which may be an older save's.
    """

    def __init__(self, path: pathlib.Path, weights: WeightMap):
        self.path, self.weights = path, weights
        self.head = weights.name_of("lm_head", "kernel")
        self._open = functools.lru_cache(maxsize=1)(
            lambda file: safe_open(path / file, framework="numpy")
        )
        self.indexed = {} if (path / _SINGLE).exists() else _read_index(path)
        # what is wrong with files and tensors, by their names
        self.unreadable: dict[str, str] = {}
        self.places: dict[str, tuple[str, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(self.indexed.values())) or [_SINGLE]:
            self._look_into(file)

    def _look_into(self, file: str) -> None:
        if not (self.path / file).exists():
            self.unreadable[file] = f"missing file: {file}"
            return
        try:
            tensors = self._open(file)
        except (SafetensorError, OSError) as error:
            self.unreadable[file] = f"unreadable file: {file} ({error})"
            return
        for key in tensors.keys():  # noqa: SIM118 (not a dict)
            name = self.weights.published_name(key)
            self.places[name] = file, key
            found = tensors.get_slice(key)
            self.shapes[name] = tuple(found.get_shape())
            if (kind := found.get_dtype()) not in _KINDS:
                self.unreadable[name] = f"numbers of {name}: {kind}, expected one of {_KINDS}"

    def slice(self, name: str) -> Any:
        """A lazy tensor: indexing it reads."""
        file, key = self.places[name]
        return self._open(file).get_slice(key)

    def has_own_head(self) -> bool:
        """Whether a head is there that is not the embedding; parts of both are held at once."""
        embedding = self.weights.name_of("language_model", "embed_tokens", "embedding")
        one, other = (self.shapes.get(name) for name in (self.head, embedding))
        if one is None or other is None:
            return False
        if one != other:
            return True
        rows = one[0]
        parts = (slice(i, min(i + _ROWS, rows)) for i in range(0, rows, _ROWS))
        return any((self.slice(self.head)[p] != self.slice(embedding)[p]).any() for p in parts)

    def check(self, sources: Sequence[Source]) -> None:
        """One error that lists everything wrong with the checkpoint's tensors."""
        expected = {name: s.checkpoint_shape for s in sources for name in s.names}
        found = self.shapes
        problems = [*self.unreadable.values(), *self._index_problems()]
        problems += [f"missing: {name}" for name in sorted(set(expected) - set(found))]
        # a tied head is sometimes written all the same
        unexpected = sorted(set(found) - set(expected) - {self.head})
        problems += [f"unexpected: {name}" for name in unexpected]
        problems += [
            f"shape of {name}: found {found[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        if problems:
            lines = "\n  ".join(problems)
            raise ValueError(f"{self.path} does not fit its config.json:\n  {lines}")

    def _index_problems(self) -> Iterator[str]:
        """Tensors that lie elsewhere than the index says, or that it leaves out."""
        if not self.indexed:
            return
        published = self.weights.published_name
        said = {published(key): file for key, file in self.indexed.items()}
        for name, (file, _) in sorted(self.places.items()):
            if name not in said:
                yield f"not in {_INDEX}: {name}, which is in {file}"
            elif said[name] != file:
                yield f"misplaced: {name}: {_INDEX} says {said[name]}, it is in {file}"


def _read_index(path: pathlib.Path) -> dict[str, str]:
    """Which file holds which tensor."""
    if not (path / _INDEX).exists():
        raise ValueError(f"{path}: neither {_SINGLE} nor {_INDEX}")
    try:
        return dict(json.loads((path / _INDEX).read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / _INDEX}: {error!r}; expected JSON whose weight_map names each tensor's file"
        ) from None


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


def _check_finite(path: pathlib.Path, sources: Any, params: Any) -> None:
    if (found := first_not_finite(params)) is None:
        return
    place, layer = found
    source = functools.reduce(lambda tree, key: tree[key.key], place, sources)
    tensor = source.names[layer if source.stacked else 0]
    dtype = functools.reduce(lambda tree, key: tree[key.key], place, params).dtype
    raise NotFinite(f"{path}: tensor {tensor} holds NaN or an infinite number, read as {dtype}")


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
        return [_SINGLE]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _copy_other_files(like: pathlib.Path, path: pathlib.Path) -> None:
    for file in like.iterdir():
        is_of_weights = _OF_WEIGHTS.search(file.name)
        if file.is_file() and not is_of_weights and not (path / file.name).exists():
            shutil.copy2(file, path / file.name)


def _most(params: Params) -> str:
    """The dtype of most numbers."""
    counts: collections.Counter[str] = collections.Counter()
    for leaf in jax.tree.leaves(params):
        counts[str(leaf.dtype)] += leaf.size
    return counts.most_common(1)[0][0]


def _with_dtype(raw: str, dtype: str) -> str:
    """The text of a config.json, the dtype that it names, for its parts too, exchanged."""

    def exchanged(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        said = {name for name in ("dtype", "torch_dtype") if isinstance(node.get(name), str)}
        return {name: dtype if name in said else exchanged(value) for name, value in node.items()}

    found = json.loads(raw)
    named = exchanged(found)
    return raw if named == found else json.dumps(named, indent=2) + "\n"


def _with_pad(raw: str, config: ModelConfig) -> str:
    """The text of a JSON file; a pad id that is no token is exchanged for the model's."""
    found = json.loads(raw)
    written = found.get("pad_token_id")
    if written is None or is_token(written, config.vocab_size):
        return raw
    return json.dumps(found | {"pad_token_id": config.pad_token_id}, indent=2) + "\n"


def _write_configs(path: pathlib.Path, model: VLM, dtype: str) -> None:
    config = model.config
    if not config.raw:
        raise ValueError("the model's config was not read from a config.json, so none can be saved")
    (path / "config.json").write_text(_with_pad(_with_dtype(config.raw, dtype), config))
    generation = path / "generation_config.json"
    if generation.exists():
        generation.write_text(_with_pad(generation.read_text(), config))
    else:
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
