"""What a run will hold on one device: computed from a config and the shapes of its model, before
any weights are read.

What stays from step to step is counted exactly. What an update and the sampler need beside it is
an estimate: what the backward pass keeps is what JAX's own trace of the loss keeps, to which the
gradients, one layer's recomputation and the logits of a chunk are added. What the compiler makes of
it can be less (it shares buffers) or more (it copies); the runtime's own share is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import SIZES
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.method import Method
from rdbcl_jax.models import partition
from rdbcl_jax.models.interface import VLM
from rdbcl_jax.models.partition import Frozen, Trained
from rdbcl_jax.policy import Policy, abstract_policy
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.training.logprobs import response_logprobs
from rdbcl_jax.training.optimizer import make_optimizer
from rdbcl_jax.training.stage import dtype_of_frozen

GIB = 2**30
_RECORD = Record("any", "any", "?", (), "", "exact", {})


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Of one device, in bytes.

    Attributes:
      parameters, trained: how many numbers the model has, and how many of them learn.
      held: from step to step, by what it is: exact.
      update, sampling: what each needs beside that, by what it is: an estimate.
      scores: beside these, where attention has no kernel (on GPUs and CPUs): the scores of one
        layer.
    """

    parameters: int
    trained: int
    held: dict[str, int]
    update: dict[str, int]
    sampling: dict[str, int]
    scores: int

    def most(self, kernel: bool) -> int:
        """At one time; `kernel`: attention has one, as on TPUs."""
        beside = max(sum(self.update.values()), sum(self.sampling.values()))
        return sum(self.held.values()) + beside + (0 if kernel else self.scores)

    def lines(self) -> Iterator[str]:
        """As text, for people."""
        learn = f"{self.trained / 1e6:,.1f} M of them learn"
        yield f"{self.parameters / 1e6:,.1f} M parameters, {learn}"
        for title in ("held", "update", "sampling"):
            for name, size in getattr(self, title).items():
                yield f"{size / GIB:8.2f} GiB  {title}: {name}"
        yield f"{self.scores / GIB:8.2f} GiB  scores of a layer's attention, where it has no kernel"
        tpu, other = (self.most(kernel) / GIB for kernel in (True, False))
        yield f"at most {tpu:.1f} GiB on a TPU, {other:.1f} GiB elsewhere"


def footprint(config: RunConfig) -> Footprint:
    """For the largest batches that the config allows, on one device.

    Args:
      config: `model.path` names a checkpoint directory, whose weights may be missing. Where it
        leaves `data.images_per_prompt` to the data, one is taken.
    Raises:
      ValueError: sizes of batches that the config leaves open.
    """
    config = config.changed({"data.images_per_prompt": config.data.images_per_prompt or (1,)})
    for name in SIZES:
        if not getattr(config.data, name):
            raise ValueError(
                f"config.data.{name} is empty, to be chosen from the data; expected the sizes of "
                "batches: no data is read here"
            )
    config = config.changed({f"data.{n}": (max(getattr(config.data, n)),) for n in SIZES})
    policy, trained = abstract_policy(config, make_mesh(devices=jax.devices()[:1]))
    method, frozen = make_method(config), policy.frozen
    model: VLM = dataclasses.replace(policy.model, mesh=None, attention="xla")
    steps, dtype = config.training.steps, config.model.param_dtype
    optimizer = make_optimizer(config.optimizer, steps, dtype)
    prompts = _prompts(policy, config.rollout.prompts)
    parts = config.training.microbatches
    loss = _Loss(model, config, trained, frozen, _prompts(policy, config.rollout.prompts // parts))
    kept = loss.kept(config.model.remat)
    logits = config.training.chunk_size * model.config.vocab_size * 4
    key, value, _ = jax.eval_shape(model.prefill, policy.whole(trained), prompts)[1]
    slots = config.rollout.samples * (config.rollout.max_tokens - 1)
    length = prompts.tokens.shape[1]
    rollouts = config.rollout.prompts * config.rollout.samples
    return Footprint(
        parameters=_count(policy.whole(trained)),
        trained=_count(trained),
        held={
            "parameters that learn": _bytes(trained),
            "parameters that do not": _bytes(frozen),
            "the optimizer's moments": _bytes(jax.eval_shape(optimizer.init, trained)),
            **_frozen(config, method, model, trained),
            "a batch": _bytes(prompts),
        },
        update={
            "gradients": _count(trained) * 4 * min(parts, 2),  # the sum, and a part's
            "kept for the backward pass": kept,
            "one layer, recomputed": (loss.kept("none") - kept) // key.shape[0],  # its share
            "logits of a chunk, and their gradient": 2 * logits,
        },
        sampling={
            "parameters as they are read": _made(trained, _read(model, trained, model.dtype)),
            "cache of prompts": _bytes((key, value)),
            "cache of responses": _bytes((key, value)) * slots // length,
            "logits of a token": rollouts * model.config.vocab_size * 4,
        },
        scores=loss.scores(),
    )


def _frozen(config: RunConfig, method: Method, model: VLM, trained: Trained) -> dict[str, int]:
    """What of earlier tasks is held."""
    count = 1 + (method.reference not in (None, "previous"))
    size = _bytes(_read(model, trained, dtype_of_frozen(config, method)))
    found = {"policies from before the task": count * size}
    if method.consolidation:
        found["what mattered to earlier tasks"] = 4 * _count(trained)
    return found


def _read(model: VLM, trained: Trained, dtype: Any) -> Trained:
    stacks = model.param_axes.stacks
    return jax.eval_shape(lambda t: partition.read_in(t, stacks, jnp.dtype(dtype)), trained)


def _made(old: Any, new: Any) -> int:
    """Bytes of the arrays that are in another dtype than before, and thus others."""
    pairs = zip(*map(jax.tree.leaves, (old, new)), strict=True)
    return _bytes([b for a, b in pairs if a.dtype != b.dtype])


@dataclasses.dataclass(frozen=True)
class _Loss:
    """What is differentiated of a micro-batch: the log-probs of its responses."""

    model: VLM
    config: RunConfig
    trained: Trained
    frozen: Frozen
    prompts: PromptBatch

    def __call__(self, model: VLM, trained: Trained, frozen: Frozen, prompts: PromptBatch):
        rollout = self.config.rollout
        shape = (len(prompts.tokens), rollout.samples, rollout.max_tokens)
        return response_logprobs(
            model,
            partition.join(trained, frozen),
            prompts,
            jnp.zeros(shape, jnp.int32),
            jnp.ones(shape, bool),
            temperature=rollout.temperature,
            chunk_size=self.config.training.chunk_size,
        )

    def kept(self, remat: str) -> int:
        """Bytes that the backward pass reads, but for the parameters themselves and the batch."""
        model = dataclasses.replace(self.model, remat=remat)

        def backward(trained, *others):
            return jax.vjp(lambda trained: self(model, trained, *others), trained)[1]

        given = self.trained, self.frozen, self.prompts
        arrays = jax.tree.leaves(jax.eval_shape(backward, *given))
        there = {(a.shape, a.dtype) for a in jax.tree.leaves(given)}
        return _bytes([a for a in arrays if (a.shape, a.dtype) not in there])

    def scores(self) -> int:
        """Bytes of the largest array in between: without a kernel, the scores of attention, and the
        weights made of them."""
        given = self.trained, self.frozen, self.prompts
        traced = jax.make_jaxpr(lambda *given: self(self.model, *given))(*given)
        return 2 * max(_sizes(traced.jaxpr))


def _prompts(policy: Policy, count: int) -> PromptBatch:
    """Shapes of a batch."""
    batch = policy.encoder.encode([_RECORD] * count)
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch))


def _sizes(jaxpr: Jaxpr) -> Iterator[int]:
    """Bytes of all arrays that a program makes."""
    for equation in jaxpr.eqns:
        yield from (_bytes([v.aval]) for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                yield from _sizes(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _count(tree: Any) -> int:
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(tree))
