"""What a run will hold on each device, by arithmetic: from a config and the shapes of its model,
before any weights are read and without a compiler.

What stays from step to step is counted exactly. What an update and the sampler need beside it is
an estimate: what the backward pass keeps is what JAX's own trace of the loss keeps, to which the
parameters in the dtype of products, gradients, one layer's recomputation and the logits of a chunk
are added. What the compiler makes of it can be less (it shares buffers) or more (it copies); the
runtime's own share is left out.
`rdbcl plan` asks the compiler where there is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AbstractMesh

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import SIZES
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.method import Method
from rdbcl_jax.models import partition
from rdbcl_jax.models.decoder import own_of, read_with_each_token
from rdbcl_jax.models.interface import VLM
from rdbcl_jax.models.partition import Frozen, Trained
from rdbcl_jax.policy import Policy, abstract_policy
from rdbcl_jax.sharding import (
    AXES,
    ParamAxes,
    bytes_of,
    bytes_per_device,
    is_gathered,
    make_mesh,
    numbers_in,
    param_shardings,
    row_parts,
)
from rdbcl_jax.training.logprobs import response_logprobs
from rdbcl_jax.training.microbatches import passes_at_once, prompts_at_once
from rdbcl_jax.training.optimizer import make_optimizer
from rdbcl_jax.training.stage import dtype_of_frozen

GIB = 2**30
# what is held, by what it is
LEARN, FIXED = "parameters that learn", "parameters that do not"
MOMENTS, PREVIOUS = "the optimizer's moments", "policies from before the task"
READ = "parameters as they are read"
FISHER, WRITTEN = "what mattered to earlier tasks", "a state that is being written"
ONE_DEVICE = dict.fromkeys(AXES, 1)
_RECORD = Record("any", "any", "?", (), "", "exact", {})


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Of one device, in bytes.

    Attributes:
      parameters, trained: how many numbers the model has, and how many of them learn.
      held: from step to step, by what it is: exact.
      update, sampling, reference: what each needs beside that, by what it is: an estimate. A pass
        forward alone has no more of a layer than an update keeps of it.
      scores: beside these, where attention has no kernel: the scores of one layer.
      kernels: whether kernels take all that the model asks for, where the chip has them.
    """

    parameters: int
    trained: int
    held: dict[str, int]
    update: dict[str, int]
    sampling: dict[str, int]
    reference: dict[str, int]
    scores: int
    kernels: bool

    def scores_held(self, kernel: bool) -> int:
        """`kernel`: the chip has some for attention."""
        return 0 if kernel and self.kernels else self.scores

    def most(self, kernel: bool) -> int:
        """At one time; `kernel`: the chip has some for attention."""
        beside = max(sum(self.update.values()), sum(self.sampling.values()))
        return sum(self.held.values()) + beside + self.scores_held(kernel)


def between_tasks(held: Mapping[str, int], references: int, *, evaluated: bool) -> int:
    """Of what is held from step to step, by what it is, the bytes that still are when a task is
    over: no moments, and once it is evaluated no policy from before it.

    Args:
      references: how many policies from before the task are held.
    """
    gone = held[MOMENTS] + (held[PREVIOUS] // references if evaluated else 0)
    return sum(held.values()) - gone


def footprint(config: RunConfig, mesh: Mapping[str, int] = ONE_DEVICE) -> Footprint:
    """For the largest batches that the config allows.

    Args:
      config: `model.path` names a checkpoint directory, whose weights may be missing. Where it
        leaves `data.images_per_prompt` to the data, one is taken.
      mesh: devices along each axis.
    Raises:
      ValueError: sizes of batches that the config leaves open.
    """
    return Sizes.of(config).on(mesh)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a footprint is computed from: shapes of a run, and what one prompt adds, in bytes.

    Attributes:
      batch: of a prompt and its pictures.
      kept: by the backward pass.
      layer: what one layer keeps while it is made again.
      scores, kernels: of a layer's attention, see `Footprint`.
      cache, responses: keys and values of the prompt and of its rollouts.
      logits: of a token of each rollout.
    """

    config: RunConfig
    axes: ParamAxes
    whole: Any
    trained: Trained
    read: Trained  # as sampling reads them
    decoder: Any  # what every token reads of all parameters, likewise
    earlier: Trained  # as the policy from before the task is held
    moments: int
    references: int
    consolidates: bool
    depth: int
    width: int
    dtype: str
    vocabulary: int
    batch: int
    kept: int
    layer: int
    scores: int
    kernels: bool
    cache: int
    responses: int
    logits: int

    @classmethod
    def of(cls, config: RunConfig) -> Sizes:
        """Traces the loss of one prompt; nothing of the mesh is read."""
        config = config.changed({"data.images_per_prompt": config.data.images_per_prompt or (1,)})
        for name in SIZES:
            if not getattr(config.data, name):
                raise ValueError(
                    f"config.data.{name} is empty, to be chosen from the data; expected the sizes "
                    "of batches: no data is read here"
                )
        config = config.changed({f"data.{n}": (max(getattr(config.data, n)),) for n in SIZES})
        policy, trained = abstract_policy(config, make_mesh(devices=jax.devices()[:1]))
        method, frozen = make_method(config), policy.frozen
        model: VLM = dataclasses.replace(policy.model, mesh=None, attention="xla")
        optimizer = make_optimizer(
            config.optimizer, config.training.steps, config.model.param_dtype
        )
        prompts = _prompts(policy, 1)
        loss = _Loss(model, config, trained, frozen, prompts)
        kept = loss.kept(config.model.remat)
        hidden, cache = jax.eval_shape(model.prefill, policy.whole(trained), prompts)
        key, value, _ = cache
        rollout = config.rollout
        slots = rollout.samples * (rollout.max_tokens - 1)
        return cls(
            config=config,
            axes=model.param_axes,
            whole=policy.whole(trained),
            trained=trained,
            read=_read(model, trained, model.dtype),
            decoder=own_of(_read(model, policy.whole(trained), model.dtype)),
            earlier=_read(model, trained, dtype_of_frozen(config, method)),
            moments=bytes_of(jax.eval_shape(optimizer.init, trained)),
            references=references(method),
            consolidates=bool(method.consolidation),
            depth=key.shape[0],
            width=hidden.shape[-1],
            dtype=model.dtype,
            vocabulary=model.config.vocab_size,
            batch=bytes_of(prompts),
            kept=kept,
            layer=(loss.kept("none") - kept) // key.shape[0],
            scores=loss.scores(),
            kernels=model.fits_kernels(prompts, prompts.tokens.shape[1] + rollout.max_tokens),
            cache=bytes_of((key, value)),
            responses=bytes_of((key, value)) * slots // prompts.tokens.shape[1],
            logits=config.rollout.samples * model.config.vocab_size * 4,
        )

    def gathers(self, mesh: Mapping[str, int], memory: int | None) -> bool:
        """Whether a device holds what decoding reads, gathered over `fsdp`."""
        return is_gathered(self._over_tensor(self.decoder, mesh), memory)

    def read_with_each_token(self, mesh: Mapping[str, int]) -> int:
        """Bytes of weights that decoding reads on a device: of the embedding a row alone, unless it
        is the head."""
        return self._over_tensor(read_with_each_token(self.decoder), mesh)

    def _over_tensor(self, params: Any, mesh: Mapping[str, int]) -> int:
        """Bytes on a device of parameters that are split over `tensor` alone."""
        return _split(params, self.axes, {**mesh, "fsdp": 1})

    def on(
        self, mesh: Mapping[str, int], at_once: int | None = None, memory: int | None = None
    ) -> Footprint:
        """Args:
        at_once: prompts of a micro-batch on each device; None: the config's.
        memory: bytes that a device has; None: not known.
        """
        training, axes, whole = self.config.training, self.axes, self.whole
        rows = -(-self.config.rollout.prompts // row_parts(mesh))
        at_once = prompts_at_once(self.config, mesh) if at_once is None else at_once
        share = _split(self.trained, axes, mesh) / bytes_of(self.trained)  # of moments, gradients
        held = {
            LEARN: _split(self.trained, axes, mesh),
            FIXED: _split(whole, axes, mesh) - _split(self.trained, axes, mesh),
            MOMENTS: int(self.moments * share),
            PREVIOUS: self.references * _split(self.earlier, axes, mesh),
        }
        if self.consolidates:
            held[FISHER] = int(4 * numbers_in(self.trained) * share)
        chunk = training.chunk_size * self.vocabulary * 4 // mesh["tensor"] // row_parts(mesh)
        update = {
            READ: _made(self.trained, self.read, axes, mesh),
            # the sum, and a part's
            "gradients": int(4 * numbers_in(self.trained) * share) * (2 if rows > at_once else 1),
            "kept for the backward pass": self.kept * at_once,
            "one layer, recomputed": self.layer * at_once,
            "logits of a chunk, and their gradient": 2 * chunk,
        }
        together = rows if passes_at_once(self.config, mesh) else at_once
        reference = {"one layer": self.layer * together, "logits of a chunk": chunk}
        if mesh["fsdp"] > 1:  # this one and the next
            layer = self._over_tensor(whole, mesh) // self.depth
            update["two layers, gathered"] = 2 * layer
        return Footprint(
            parameters=numbers_in(whole),
            trained=numbers_in(self.trained),
            held=held | {"a batch": self.batch * rows},
            update=update,
            sampling=self.sampling(
                mesh, self.config.rollout.prompts, self.config.rollout.samples, memory
            ),
            reference=reference,
            scores=self.scores * at_once,
            kernels=self.kernels,
        )

    def sampling(
        self, mesh: Mapping[str, int], prompts: int, samples: int, memory: int | None = None
    ) -> dict[str, int]:
        """What sampling needs on a device beside what is held, by what it is, for so many prompts
        of all devices, with so many responses each."""
        rows = -(-prompts // row_parts(mesh))
        each = self.config.rollout.samples  # of which the sizes are
        found = {
            READ: _made(self.trained, self.read, self.axes, mesh),
            "cache of prompts": self.cache * rows,
            "cache of responses": self.responses * rows * samples // each,
            "logits of a token": self.logits * rows * samples // each // mesh["tensor"],
        }
        if "lm_head" not in self.decoder:  # a transposed embedding, which XLA for TPUs copies
            head = jnp.dtype(self.dtype).itemsize * self.width * self.vocabulary
            found["the head, laid out anew"] = head // mesh["tensor"]
        if mesh["fsdp"] > 1 and self.gathers(mesh, memory):
            found["parameters gathered over fsdp"] = self._over_tensor(self.decoder, mesh)
        return found


def references(method: Method) -> int:
    """Policies of earlier tasks that are held."""
    return 1 + (method.reference not in (None, "previous"))


def _read(model: VLM, params: Any, dtype: Any) -> Any:
    stacks = model.param_axes.stacks
    return jax.eval_shape(lambda p: partition.read_in(p, stacks, jnp.dtype(dtype)), params)


def _made(old: Any, new: Any, axes: ParamAxes, mesh: Mapping[str, int]) -> int:
    """Bytes of the arrays that are in another dtype than before, and thus others."""
    other = jax.tree.map(lambda a, b: b if a.dtype != b.dtype else None, old, new)
    return _split(other, axes, mesh)


def _split(params: Any, axes: ParamAxes, mesh: Mapping[str, int]) -> int:
    """Bytes of parameters on each device."""
    abstract = AbstractMesh(tuple(mesh[axis] for axis in AXES), AXES)
    return bytes_per_device(params, param_shardings(params, axes, abstract))


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
        return bytes_of([a for a in arrays if (a.shape, a.dtype) not in there])

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
        yield from (bytes_of([v.aval]) for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                yield from _sizes(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
