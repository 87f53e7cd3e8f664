"""A model together with its tokenizer and processors: text and pictures in, text out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import ModelConfig, RunConfig
from rdbcl_jax.data.check import SIZES, Check
from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.finite import check_finite
from rdbcl_jax.models import (
    exact_dtype,
    from_config,
    from_pretrained,
    lora,
    partition,
    read_processor,
    read_tokenizer,
)
from rdbcl_jax.models.interface import VLM, Params
from rdbcl_jax.models.partition import Frozen, Trained
from rdbcl_jax.rewards.spans import SpanFinder
from rdbcl_jax.sharding import RowShard, abstract, param_shardings, row_shard
from rdbcl_jax.workdir import directory_of, is_directory, place, run_config


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is fixed about a policy during a run; the parameters that learn travel apart.

    Those that do not learn (`frozen`: with LoRA all but the adapters; a frozen vision tower) are
    held here once, and shared by the policy and its reference.
    """

    model: VLM
    frozen: Frozen
    tokenizer: Any
    encoder: PromptEncoder
    spans: SpanFinder
    mesh: jax.sharding.Mesh

    def whole(self, trained: Trained) -> Params:
        """All parameters, from those that learn; nothing is copied."""
        return partition.join(trained, self.frozen)

    def to_read(self, trained: Trained) -> Params:
        """All parameters as forward passes read them: matrices that are held in another dtype than
        the model computes in are copied into that once, and not once a token."""
        stacks = self.model.param_axes.stacks
        return self.whole(partition.read_in(trained, stacks, self.model.dtype))

    @property
    def rows(self) -> RowShard:
        """Which rows of every batch this process holds."""
        return row_shard(self.mesh)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.encoder.stop_ids

    def texts(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """Responses [n, T] as text, without the end token; whole, with what the prompt opened."""
        return self.whole_texts([""] * len(tokens), tokens, mask)

    def whole_texts(
        self, prefixes: Sequence[str], tokens: np.ndarray, mask: np.ndarray
    ) -> list[str]:
        """As `texts`, of responses whose beginnings were given: what the prompt opened, the
        beginning, and what the tokens [n, T] say."""
        opened, tag = self.encoder.opened, self.encoder.opened.strip()
        real = mask & ~np.isin(tokens, self.stop_ids)
        rows = [row[keep].tolist() for row, keep in zip(tokens, real, strict=True)]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=False)
        starts = [p if tag and p.lstrip().startswith(tag) else opened + p for p in prefixes]
        return [
            start + ("" if start[-1:].isspace() else self.joint) + text if start else text
            for start, text in zip(starts, texts, strict=True)
        ]

    @property
    def joint(self) -> str:
        """What stands between two decoded parts: a word-level tokenizer, which has no decoder,
        leaves out the space."""
        return " " if self.tokenizer.backend_tokenizer.decoder is None else ""

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token as text; joined they are the response."""
        texts = self.tokenizer.batch_decode([[int(t)] for t in tokens])
        return [text + self.joint for text in texts]


def load_policy(config: RunConfig, mesh: jax.sharding.Mesh) -> tuple[Policy, Trained]:
    """Reads the model that `config.model.path` names onto the mesh.

    Returns:
      The policy, and the parameters that learn.

    Raises:
      FileNotFoundError: no such checkpoint directory, run or task of it.
      ValueError: tensors that do not fit the model.
    """
    options = config.model
    directory = directory_of(options.path)
    if is_directory(options.path):
        model, params = from_pretrained(
            directory,
            dtype=options.dtype,
            param_dtype=options.param_dtype,
            mesh=mesh,
            remat=options.remat,
            attention=options.attention,
            held=functools.partial(_held, options),
        )
    else:
        model, params = _learned(options, mesh)
    if options.lora.rank:
        adapters = lora.LoRA(**options.lora.to_dict())
        model, params = lora.add(model, params, adapters, jax.random.key(config.seed))
        shardings = param_shardings(params, model.param_axes, mesh)
        params = jax.tree.map(jax.device_put, params, shardings)
    return _assembled(config, model, params, directory, mesh)


def abstract_policy(config: RunConfig, mesh: jax.sharding.Mesh) -> tuple[Policy, Trained]:
    """`load_policy` of a checkpoint directory whose weights are not read: in the place of each
    parameter its shape, its dtype and where it would lie."""
    options, directory = config.model, directory_of(config.model.path)
    how = {name: getattr(options, name) for name in ("dtype", "param_dtype", "remat", "attention")}
    model = from_config(directory, mesh=mesh, **how)
    if options.lora.rank:
        model = lora.adapt_model(model, lora.LoRA(**options.lora.to_dict()))
    params = _held(options, model, model.abstract_params())
    shardings = param_shardings(params, model.param_axes, mesh)
    return _assembled(config, model, abstract(params, shardings), directory, mesh)


def _assembled(
    config: RunConfig, model: VLM, params: Params, directory: pathlib.Path, mesh: jax.sharding.Mesh
) -> tuple[Policy, Trained]:
    """The policy of all parameters of a model, and those of them that learn."""
    trained, frozen = partition.split(params, _learning(config.model, model))
    encoder = make_encoder(config, directory)
    spans = SpanFinder(encoder.tokenizer, encoder.opened)
    return Policy(model, frozen, encoder.tokenizer, encoder, spans, mesh), trained


def _learning(options: ModelConfig, model: VLM) -> str:
    """The names of the parameters that learn, as a pattern."""
    if options.lora.rank:
        return partition.ADAPTERS
    return model.language_pattern if options.freeze_vision else partition.ALL


def _held(options: ModelConfig, model: VLM, params: Params) -> Params:
    """Shapes of a model's parameters, in the dtypes in which they are held."""
    dtype = jnp.dtype(options.frozen_dtype or options.dtype)
    return partition.frozen_in(params, _learning(options, model), model.param_axes.stacks, dtype)


def make_encoder(config: RunConfig, directory: pathlib.Path) -> PromptEncoder:
    """What makes prompts of records, with the tokenizer and processor of a checkpoint directory."""
    return encoder_of(config, directory, {name: allowed_sizes(config, name) for name in SIZES})


def encoder_of(
    config: RunConfig, directory: pathlib.Path, sizes: Mapping[str, Sequence[int]]
) -> PromptEncoder:
    """The same for batches of these sizes, by their names in `SIZES`; none: of any."""
    options = config.model
    return PromptEncoder(
        read_tokenizer(directory),
        read_processor(
            directory,
            min_pixels=options.min_pixels or None,
            max_pixels=options.max_pixels or None,
            patch_slots=sizes.get("patch_slots", ()),
            images_per_prompt=sizes.get("images_per_prompt", ()),
        ),
        lengths=sizes.get("prompt_lengths", ()),
        response_lengths=(config.rollout.max_tokens,),
        system_prompt=config.data.system_prompt,
        template=config.data.template,
    )


def record_check(
    config: RunConfig, directory: Callable[[], contextlib.AbstractContextManager[pathlib.Path]]
) -> Check:
    """Whether records can be encoded with the tokenizer and processor of a checkpoint directory,
    which is asked for once records of a file are there: those of suites need no check."""

    # as the config has them: those that it leaves out are chosen when all is measured
    sizes = {name: getattr(config.data, name) for name in SIZES}

    @functools.cache
    def made() -> tuple[PromptEncoder, str]:
        with directory() as path:
            return encoder_of(config, path, sizes), _key(config, path)

    return Check(config.data.check, lambda: made()[0], lambda: made()[1], sizes)


def _key(config: RunConfig, directory: pathlib.Path) -> str:
    """Names all that decides whether a record can be encoded."""
    data, options = config.data, config.model
    texts = (data.template, data.system_prompt)
    versions = [metadata.version(package) for package in ("rdbcl_jax", "transformers", "pillow")]
    key = hashlib.sha256(repr((texts, versions)).encode())
    key.update(repr((options.min_pixels, options.max_pixels)).encode())
    for file in sorted(directory.iterdir()):
        if file.suffix in (".json", ".jinja", ".txt", ".model") and file.is_file():
            key.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return key.hexdigest()[:32]


def allowed_sizes(config: RunConfig, name: str) -> tuple[int, ...]:
    """Sizes that batches may have. The parts of a batch must have one shape and no process sees the
    rows of another, so several processes always take the largest.

    Raises:
      ValueError: several processes, and an empty list, by which each batch takes the size it needs.
    """
    sizes = tuple(getattr(config.data, name))
    if jax.process_count() == 1:
        return sizes
    if not sizes:
        raise ValueError(
            f"config.data.{name} is empty, so that each batch takes the size that it needs; "
            "expected one size for all, since there are several processes"
        )
    return (max(sizes),)


def _learned(options: ModelConfig, mesh: jax.sharding.Mesh) -> tuple[VLM, Params]:
    """The model and all parameters of a run's policy `WORKDIR@K`, its adapters merged: what
    `rdbcl export` writes, without the detour through files."""
    config = run_config(options.path)
    start, workdir, task = place(config, options.path)
    how = ("dtype", "param_dtype", "remat", "attention")  # it runs, not what it is
    config = config.changed({f"model.{name}": getattr(options, name) for name in how})
    frozen = unrounded(options.param_dtype, start)
    config = config.changed({"model.path": start, "model.frozen_dtype": frozen})
    policy, trained = load_policy(config, mesh)
    if workdir and task:
        like = abstract(trained)
        del trained  # before its successor is read
        trained = Checkpoints(workdir).restore_task(task, like)
        check_finite(trained, f"{options.path} is not read")
    model, params = policy.model, policy.whole(trained)
    del policy, trained  # each parameter goes when its successor is there
    whole = dataclasses.replace(model, lora=None)
    held = _held(options, whole, whole.abstract_params())
    model, params = lora.merge(model, params, held, owned=True)
    return model, jax.device_put(params, param_shardings(params, model.param_axes, mesh))


def unrounded(param_dtype: str, start: str) -> str:
    """For `model.frozen_dtype`: in which a run's matrices that do not learn are what they are in
    its start, be that a directory or what another run has learned in `param_dtype`."""
    return exact_dtype(directory_of(start)) if is_directory(start) else param_dtype
