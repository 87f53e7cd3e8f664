"""The programs of a run, as the library itself runs them, lowered from shapes: nothing is read but
config files, and nothing is allocated."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rdbcl_jax.batches import PromptBatch, TrainBatch
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import Method, make_method
from rdbcl_jax.methods.classic import EWCOptions
from rdbcl_jax.models import partition
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy, abstract_policy
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import abstract, batch_shardings, bytes_per_device
from rdbcl_jax.training.fisher import at_once, squared_gradients
from rdbcl_jax.training.footprint import between_tasks, references
from rdbcl_jax.training.learner import Learner, make_learner
from rdbcl_jax.training.logprobs import compiled_logprobs
from rdbcl_jax.training.stage import dtype_of_frozen
from rdbcl_jax.training.update import Consolidation

_RECORD = Record("any", "any", "?", (), "", "exact", {})


class Program(NamedTuple):
    """A jitted function and its arguments as shapes.

    Attributes:
      name: of the phase in which it runs.
      jitted: the function.
      args, kwargs: shapes with shardings; static arguments as they are.
      made: bytes per chip of what is made for it: its batch, copies of parameters.
      mean: what of a condition counts, see `flops.flops`.
    """

    name: str
    jitted: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: int
    mean: bool = False

    def lowered(self) -> Any:
        return self.jitted.lower(*self.args, **self.kwargs)

    def traced(self) -> Any:
        """Its jaxpr."""
        return self.jitted.trace(*self.args, **self.kwargs).jaxpr


@dataclasses.dataclass(frozen=True)
class Programs:
    """A run's programs on a mesh.

    Attributes:
      learner: its config has the sizes of the largest batches, unless there are records.
      records: of the batches, all of this process; none: any.
    """

    learner: Learner
    records: Sequence[Record] = ()

    @classmethod
    def of(cls, config: RunConfig, mesh: jax.sharding.Mesh) -> Programs:
        """Args:
        config: of one size of batches; `model.path` is a directory without weights.
        """
        policy, trained = abstract_policy(config, mesh)
        method = make_method(config)
        rewards = RewardConfig(**config.rewards.to_dict())
        return cls(make_learner(config, policy, trained, method, rewards))

    @property
    def config(self) -> RunConfig:
        return self.learner.config

    @property
    def method(self) -> Method:
        return self.learner.method

    @property
    def policy(self) -> Policy:
        return self.learner.policy

    @property
    def trained(self) -> Trained:
        """Shapes of the parameters that learn."""
        return self.learner.like.params

    def all(self) -> Iterator[Program]:
        """Those of a step, and what runs between steps."""
        yield from self.of_a_step()
        evaluated = self.prompts(self.config.evaluation.batch_size)
        yield self._sampler("evaluation", evaluated, 1, greedy=True)
        if surveyed := surveys(self.config, self.method):
            yield self._sampler("survey", evaluated, surveyed, greedy=False)
        if self.method.consolidation:
            yield self._fisher()

    def of_a_step(self) -> Iterator[Program]:
        """In its order, those that the method runs."""
        rollout, sampled = self.config.rollout, self.method.responses == "sampled"
        prompts = self.prompts(rollout.prompts)
        if sampled:
            yield self._sampler("sampling", prompts, rollout.samples, greedy=False)
        if self.method.responses != "none":
            if sampled and (self.method.reference or self.method.previous):
                yield self._reference(prompts)
            yield self._update(prompts)

    def live(self, name: str, held: Mapping[str, int]) -> int:
        """Of what is held, by what it is, the bytes that lie there while a program runs."""
        return live(name, held, self.config, self.method)

    def prompts(self, count: int) -> PromptBatch:
        records = [*itertools.islice(itertools.cycle(self.records or (_RECORD,)), count)]
        batch = self.policy.encoder.encode(records)
        return self._placed(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch)))

    @property
    def frozen_policy(self) -> Trained:
        """The policy from before the task, as it is held."""
        stacks = self.policy.model.param_axes.stacks
        dtype = dtype_of_frozen(self.config, self.method)
        made = jax.eval_shape(lambda t: partition.read_in(t, stacks, dtype), self.trained)
        return self._like(made, self.trained)

    @property
    def references(self) -> int:
        """How many policies from before the task are held."""
        return references(self.method)

    @property
    def fisher(self) -> Trained:
        """What EWC keeps of earlier tasks beside their policy."""
        return jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), self.trained
        )

    @property
    def read(self) -> Params:
        """All parameters as forward passes read them."""
        return self._like(jax.eval_shape(self.policy.to_read, self.trained), self._whole)

    @property
    def _copies(self) -> int:
        """Bytes of the parameters that are copied to be read, since they learn in another dtype."""
        return _other_dtypes(self._whole, self.read)

    @property
    def _whole(self) -> Params:
        return self.policy.whole(self.trained)

    def _sampler(self, name: str, prompts: PromptBatch, samples: int, greedy: bool) -> Program:
        key = jax.eval_shape(lambda: jax.random.key(0))
        sampling = sampling_of(self.policy, self.config.rollout, greedy=greedy)
        args, made = (
            (self.policy.model, self.read, prompts, key),
            self._copies + bytes_per_device(prompts),
        )
        options = {"samples": samples, "sampling": sampling}
        return Program(name, sample, args, options, made, mean=True)

    def _fisher(self) -> Program:
        """Beside the parameters as its sampler reads them lies the sum of the batches before."""
        config, options = self.config, self.config.section(EWCOptions)
        size = config.evaluation.batch_size
        prompts = self.prompts(at_once(options.sequences, size, self.policy.rows))
        sampler = self._sampler("fisher", prompts, 1, greedy=False)
        rollouts = self._placed(sampler.jitted.eval_shape(*sampler.args, **sampler.kwargs))
        counted = self._placed(prompts_like(prompts, bool))
        args = (self.policy.model, self.trained, self.policy.frozen, prompts, rollouts, counted)
        given = {
            "temperature": config.rollout.temperature,
            "chunk_size": config.training.chunk_size,
        }
        made = sampler.made + bytes_per_device((rollouts, self.fisher))
        return Program("fisher", squared_gradients, args, given, made)

    def _reference(self, prompts: PromptBatch) -> Program:
        tokens = self._rows(jnp.int32, self.config.rollout.max_tokens)
        made = jax.eval_shape(self.policy.to_read, self.frozen_policy)
        params = self._like(made, self._whole)
        mask = self._rows(bool, self.config.rollout.max_tokens)
        options = {"return_entropy": False, **self.learner.logprob_options}
        args = (self.policy.model, params, prompts, tokens, mask)
        copies = _other_dtypes(self.policy.whole(self.frozen_policy), params)
        made = copies + bytes_per_device((prompts, tokens, mask))
        return Program("reference", compiled_logprobs, args, options, made)

    def _update(self, prompts: PromptBatch) -> Program:
        consolidation = None
        if self.method.consolidation:
            consolidation = Consolidation(self.frozen_policy, self.fisher)
        batch = self._batch(prompts)
        args = (self.learner.like, self.policy.frozen, batch, consolidation)
        return Program("update", self.learner.update, args, {}, bytes_per_device(batch))

    def _batch(self, prompts: PromptBatch) -> TrainBatch:
        method, training = self.method, self.config.training
        tokens = self.config.rollout.max_tokens

        def scalar(dtype: Any) -> Any:
            return jax.ShapeDtypeStruct((), dtype)

        several = training.updates_per_batch > 1
        old = several or (self.learner.microbatches > 1 and method.policy)
        logps = self._rows(jnp.float32, tokens)
        batch = TrainBatch(
            prompts=prompts,
            tokens=self._rows(jnp.int32, tokens),
            mask=self._rows(bool, tokens),
            reasoning_mask=self._rows(bool, tokens),
            answer_mask=self._rows(bool, tokens),
            rewards=self._rows(jnp.float32),
            accuracies=self._rows(jnp.float32),
            demonstrated=self._rows(bool),
            prompt_values=prompts_like(prompts, jnp.float32),
            step=scalar(jnp.int32),
            sampler_logps=logps,
            old_logps=logps if old else None,
            old_entropies=logps if old and method.entropies else None,
            reference_logps=logps if method.reference is not None else None,
            reference_is_policy=scalar(bool),
            previous_logps=logps if method.previous else None,
            previous_is_policy=scalar(bool),
            replayed=prompts_like(prompts, bool),
            task_step=scalar(jnp.int32),
            task_steps=scalar(jnp.int32),
            given={name: self._rows(jnp.float32) for name in method.given},
        )
        placed = self._placed(batch)  # but for scalars, which no device has before the update
        return jax.tree.map(lambda a, b: b if a.ndim else a, batch, placed)

    def _rows(self, dtype: Any, *shape: int) -> Any:
        """An abstract array [P, G, …]."""
        method, rollout = self.method, self.config.rollout
        group = rollout.samples + method.previous_responses
        if method.responses == "demonstrations":
            group = 1
        array = jax.ShapeDtypeStruct((rollout.prompts, group, *shape), dtype)
        return self._placed(array)

    def _placed(self, batch: Any) -> Any:
        return abstract(batch, batch_shardings(batch, self.policy.mesh))

    def _like(self, tree: Any, placed: Any) -> Any:
        """Shapes, where the arrays of another tree lie."""
        return jax.tree.map(
            lambda a, b: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=b.sharding), tree, placed
        )


def surveys(config: RunConfig, method: Method) -> int:
    """Responses to each of `evaluation.batch_size` prompts at once where a run asks for several: to
    choose among prompts, or to collect them. 0: it does not, or a step samples as many."""
    rollout = config.rollout
    most = max(_within(config, method), config.training.collect)
    more = config.evaluation.batch_size * most > rollout.prompts * rollout.samples
    return most if most > 1 and (more or method.responses != "sampled") else 0


def live(name: str, held: Mapping[str, int], config: RunConfig, method: Method) -> int:
    """Of what is held from step to step, by what it is, the bytes that lie there in a phase."""
    within = {"evaluation": _within(config, method) > 0, "survey": _within(config, method) > 1}
    if name == "fisher" or not within.get(name, True):
        evaluated = name == "evaluation"
        return between_tasks(held, references(method), evaluated=evaluated)
    return sum(held.values())


def _within(config: RunConfig, method: Method) -> int:
    """The most responses to a prompt that batches of `evaluation.batch_size` get while a task is
    learned: of its prompts before it, or of validation records; 0: there are no such batches."""
    asked = [1] if config.evaluation.every or method.pretask else [0]
    asked += [method.filter.survey.samples] if method.filter else []
    if method.prompts and method.prompts.survey:
        asked.append(method.prompts.survey.samples)
    return max(asked)


def prompts_like(prompts: PromptBatch, dtype: Any) -> Any:
    """An abstract array with one number a prompt."""
    return jax.ShapeDtypeStruct(prompts.tokens.shape[:1], dtype)


def _other_dtypes(old: Any, new: Any) -> int:
    """Bytes of the arrays that are in another dtype than before, and thus others."""
    pairs = zip(*map(jax.tree.leaves, (old, new)), strict=True)
    return bytes_per_device([b for a, b in pairs if a.dtype != b.dtype])
