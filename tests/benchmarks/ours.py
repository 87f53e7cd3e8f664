"""Worker: a GRPO step by the engine's own jitted programs, phase by phase."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from rdbcl_jax.batches import PromptBatch, TrainBatch
from rdbcl_jax.config import default_config
from rdbcl_jax.core.advantages import group_advantages
from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.grpo import constant
from rdbcl_jax.methods.method import Targets
from rdbcl_jax.models import partition
from rdbcl_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from rdbcl_jax.models.qwen_vl.model import QwenVL
from rdbcl_jax.models.rope import plain
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import make_mesh, put_batch
from rdbcl_jax.training.logprobs import compiled_logprobs
from rdbcl_jax.training.optimizer import make_optimizer
from rdbcl_jax.training.state import make_init
from rdbcl_jax.training.update import UpdateConfig, make_update
from tests.benchmarks import arithmetic
from tests.benchmarks.channel import Channel, Memory, versions
from tests.benchmarks.pictures import mrope_section, processor_options, random_images
from tests.benchmarks.workload import MERGE, PATCH, TEMPORAL, WINDOW, Vision, Workload


def model_config(w: Workload) -> QwenVLConfig:
    """The workload's model; its vision tower is next to nothing where no prompt has a picture."""
    vision = w.vision or Vision(1, 8, 8, 1, MERGE, (0,))
    return QwenVLConfig(
        family="qwen2_5_vl",
        vision=VisionConfig(
            depth=vision.depth,
            width=vision.width,
            mlp_width=vision.mlp_width,
            heads=vision.heads,
            patch_size=PATCH,
            temporal_patch_size=TEMPORAL,
            merge_size=MERGE,
            out_width=w.width,
            window_size=WINDOW,
            full_attention_layers=vision.full_attention_layers,
            norm="rms",
            activation="silu",
        ),
        text=TextConfig(
            vocab_size=w.vocab_size,
            depth=w.depth,
            width=w.width,
            mlp_width=w.mlp_width,
            heads=w.heads,
            kv_heads=w.kv_heads,
            head_dim=w.head_dim,
            rope=plain(w.head_dim, 1e6),
            mrope_section=mrope_section(w),
            mrope_interleaved=False,
            qkv_bias=True,
            qk_norm=False,
            norm_eps=1e-6,
            tied=True,
        ),
        image_token_id=w.special["<|image_pad|>"],
        video_token_id=w.special["<|video_pad|>"],
        vision_start_token_id=w.special["<|vision_start|>"],
        vision_end_token_id=w.special["<|vision_end|>"],
        eos_token_ids=(),  # no response ends before T
        pad_token_id=w.special["<|endoftext|>"],
    )


def grpo_config(w: Workload):
    """The engine's config of this step, as `rdbcl train` would read it."""
    config = default_config()
    config.method, config.kl.beta = "grpo", w.kl_beta
    # (at least two, as GRPO wants them; what it learns from is given)
    config.rollout.samples, config.rollout.max_tokens = max(w.samples, 2), w.response_length
    config.optimizer.learning_rate, config.optimizer.warmup_steps = w.learning_rate, 0
    config.training.chunk_size = w.chunk_size
    return config


class Prompts:
    """P prompts without padding, each so many times; `encode` is a step's work on the host."""

    def __init__(self, w: Workload, model: QwenVL, copies: int = 1):
        self.model, self.copies = model, copies
        ids = np.random.default_rng(0).integers(0, min(w.special.values()), (w.prompts, w.words))
        self.images = None
        if w.vision:
            marks = ("<|vision_start|>", *["<|image_pad|>"] * w.vision.tokens, "<|vision_end|>")
            start = np.array([w.special[name] for name in marks])
            ids = np.concatenate([np.tile(start, (w.prompts, 1)), ids], axis=1)
            self.images = random_images(w, w.prompts)
            self.processor = transformers.Qwen2VLImageProcessorPil(**processor_options(w))
        self.ids = ids

    def encode(self) -> PromptBatch:
        fields = {"input_ids": np.repeat(self.ids, self.copies, axis=0)}
        if self.images:
            images = [image for image in self.images for _ in range(self.copies)]
            fields |= self.processor(images, return_tensors="np")
        return self.model.prepare(**fields)


class Program:
    """`naive`: the same functions on G copies of each prompt with one response each."""

    def __init__(self, w: Workload, naive: bool = False):
        self.workload = w
        self.run = arithmetic.naive(w) if naive else w
        config = grpo_config(w)
        mesh = make_mesh(devices=jax.devices()[:1])
        self.model = QwenVL(model_config(w), dtype=w.dtype, mesh=mesh)
        # text only: nobody trains a vision tower that never runs
        learning = partition.ALL if w.vision else self.model.language_pattern
        params, self.frozen = partition.split(self.model.init(jax.random.key(0)), learning)
        self.parameters = sum(p.size for p in jax.tree.leaves(params))
        self.reference = jax.tree.map(jnp.copy, params)
        self.mesh = mesh
        self.source = Prompts(w, self.model, copies=self.run.prompts // w.prompts)
        beta = config.kl.beta
        # the naive form has no groups: both get the advantages of the groups as their rewards
        method = dataclasses.replace(
            make_method(config),
            targets=lambda batch, *_: Targets(batch.rewards, constant(beta, batch)),
        )
        rewards = np.random.default_rng(1).normal(size=(w.prompts, w.samples))
        advantages = np.asarray(group_advantages(rewards))
        shape = self.run.prompts, self.run.samples
        self.rewards = put_batch(advantages.reshape(shape), mesh)
        optimizer = make_optimizer(config.optimizer, updates=1000)
        init, shardings = make_init(params, optimizer, mesh)
        self.state = init(params)
        self.parts = 1 if naive else w.parts
        options = UpdateConfig(
            config.rollout.temperature, config.training.chunk_size, microbatches=self.parts
        )
        self.update = make_update(self.model, optimizer, method, options, shardings)
        self.sampling = Sampling(
            w.response_length,
            stop_ids=w.stop_ids,
            forbidden_ids=self.model.config.forbidden_token_ids,
        )
        self.memory = Memory()
        self.steps = 0

    def about(self) -> dict:
        device = jax.devices()[0]
        return {
            "parameters": self.parameters,
            "device": f"{device.platform} {device.device_kind}",
            "threads": len(os.sched_getaffinity(0)) if device.platform == "cpu" else None,
            "versions": versions("jax", "jaxlib", "flax", "optax"),
        }

    def step(self, prefill: bool = False) -> dict[str, float]:
        """Seconds of each phase, each waited for, and the memory that the step added.

        The host's work on prompts and pictures is inside the step here; a run does it ahead.
        `prefill` also times, outside of the step, a rollout of a single token.
        """
        self.memory.start()
        self.steps += 1
        clock = [time.perf_counter()]
        self.prompts = jax.block_until_ready(put_batch(self.source.encode(), self.mesh))
        clock.append(time.perf_counter())
        rollouts = self._sample(self.sampling)
        clock.append(time.perf_counter())
        reference_logps = self._score(rollouts)
        clock.append(time.perf_counter())
        self._update(rollouts, reference_logps)
        clock.append(time.perf_counter())
        seconds = (b - a for a, b in itertools.pairwise(clock))
        times = dict(zip(("host", "generate", "reference", "update"), seconds, strict=True))
        times |= {"total": clock[-1] - clock[0], "memory": self._added_memory()}
        lengths = np.asarray(rollouts.mask.sum(-1))
        times |= {"tokens": int(lengths.sum()), "longest": int(lengths.max())}
        if prefill:
            start = time.perf_counter()
            self._sample(Sampling(1, forbidden_ids=self.sampling.forbidden_ids))
            times["prefill"] = time.perf_counter() - start
        return times

    def _sample(self, sampling):
        params = partition.join(self.state.params, self.frozen)
        key = jax.random.fold_in(jax.random.key(0), self.steps)
        samples = self.run.samples
        rollouts = sample(self.model, params, self.prompts, key, samples=samples, sampling=sampling)
        return jax.block_until_ready(rollouts)

    def _score(self, rollouts):
        logps = compiled_logprobs(
            self.model,
            partition.join(self.reference, self.frozen),
            self.prompts,
            rollouts.tokens,
            rollouts.mask,
            temperature=1.0,
            chunk_size=self.workload.chunk_size,
            parts=self.parts,
        )
        return jax.block_until_ready(logps)

    def _update(self, rollouts, reference_logps):
        batch = TrainBatch(
            prompts=self.prompts,
            tokens=rollouts.tokens,
            mask=rollouts.mask,
            reasoning_mask=rollouts.mask,
            answer_mask=rollouts.mask,
            rewards=self.rewards,
            accuracies=self.rewards,
            demonstrated=jnp.zeros(self.rewards.shape, bool),
            prompt_values=jnp.zeros(len(self.rewards)),
            step=jnp.asarray(self.steps, jnp.int32),
            sampler_logps=rollouts.logps,
            reference_logps=reference_logps,
            reference_is_policy=jnp.asarray(False),
        )
        result = self.update(self.state, self.frozen, batch)
        self.state, self.metrics, _ = jax.block_until_ready(result)

    def _added_memory(self) -> int:
        """On an accelerator the highest that the whole process has reached, less what it holds."""
        stats = jax.devices()[0].memory_stats()
        if stats is None:
            return self.memory.added()
        return stats["peak_bytes_in_use"] - stats["bytes_in_use"]


def main():
    channel = Channel()
    request = channel.receive()
    program = Program(Workload.from_json(request["workload"]), request.get("naive", False))
    channel.send(program.about())
    while (request := channel.receive()) is not None:
        channel.send(program.step(**request))


if __name__ == "__main__":
    main()
