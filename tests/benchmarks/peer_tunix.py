"""Worker: a step of tunix's GRPOLearner, unchanged, on its own Qwen2 of the same sizes.

The learner runs its own loop; its data set waits until the runner asks for a step. The cluster's
methods are timed from outside, each waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster as clusters
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

from tests.benchmarks.channel import Channel, Memory, versions
from tests.benchmarks.words import word_prompts, word_tokenizer
from tests.benchmarks.workload import Workload

NEVER = -1  # no token: responses end at T


def make_model(w: Workload, mesh: jax.sharding.Mesh) -> nnx.Module:
    config = qwen2.ModelConfig(
        num_layers=w.depth,
        vocab_size=w.vocab_size,
        embed_dim=w.width,
        hidden_dim=w.mlp_width,
        num_heads=w.heads,
        head_dim=w.head_dim,
        num_kv_heads=w.kv_heads,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=jnp.dtype(w.dtype),
    )
    with mesh:
        graph, state = nnx.split(qwen2.Qwen2(config, rngs=nnx.Rngs(0)))
        shardings = nnx.get_named_sharding(state, mesh)
        return nnx.merge(graph, jax.device_put(state, shardings))


def make_cluster(w: Workload) -> clusters.RLCluster:
    devices = np.array(jax.devices()[:1]).reshape(1, 1)
    mesh = jax.sharding.Mesh(devices, ("fsdp", "tp"))
    roles = (clusters.Role.ACTOR, clusters.Role.REFERENCE, clusters.Role.ROLLOUT)
    optimizer = optax.adamw(w.learning_rate, b2=0.98, weight_decay=0.0)
    config = clusters.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh),
        training_config=clusters.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optimizer),
            eval_every_n_steps=10**9,
            max_steps=10**9,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=w.response_length,
            max_prompt_length=w.prompt_length,
            kv_cache_size=w.prompt_length + w.response_length,
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[NEVER],
        ),
    )
    return clusters.RLCluster(
        actor=make_model(w, mesh),
        reference=make_model(w, mesh),
        tokenizer=word_tokenizer(w),
        cluster_config=config,
    )


class Turns:
    """The learner's data: a batch of prompts whenever the runner asks for a step."""

    def __init__(self, channel: Channel, w: Workload, cluster: clusters.RLCluster):
        self.channel, self.workload, self.cluster = channel, w, cluster
        self.seconds: dict[str, float] = {}
        self.memory = Memory()
        self._time("generate", "generate")
        self._time("get_ref_per_token_logps", "reference")
        self._time("update_actor", "update")

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        prompts = np.array(word_prompts(self.workload, self.workload.prompts))
        while self.channel.receive() is not None:
            self.memory.start()
            start = time.perf_counter()
            yield {"prompts": prompts}
            total = time.perf_counter() - start
            host = total - sum(self.seconds.values())
            added = self.memory.added()
            self.channel.send({"host": host, **self.seconds, "total": total, "memory": added})

    def _time(self, name: str, phase: str) -> None:
        method = getattr(self.cluster, name)

        def call(*args, **kwargs):
            start = time.perf_counter()
            result = jax.block_until_ready(method(*args, **kwargs))
            if phase == "update":
                jax.block_until_ready(nnx.state(self.cluster.actor_trainer.model))
            self.seconds[phase] = time.perf_counter() - start
            if phase == "generate":
                lengths = {len(tokens) for tokens in result.tokens}
                assert lengths == {self.workload.response_length}, lengths
            return result

        setattr(self.cluster, name, call)


def main():
    channel = Channel()
    w = Workload.from_json(channel.receive()["workload"])
    cluster = make_cluster(w)
    rng = np.random.default_rng(1)
    learner = GRPOLearner(
        rl_cluster=cluster,
        algo_config=GRPOConfig(num_generations=w.samples, beta=w.kl_beta),
        reward_fns=lambda prompts, completions, **_: rng.normal(size=len(completions)).tolist(),
    )
    device = jax.devices()[0]
    state = nnx.state(cluster.actor_trainer.model, nnx.Param)
    channel.send(
        {
            "parameters": sum(p.size for p in jax.tree.leaves(state)),
            "device": f"{device.platform} {device.device_kind}",
            "threads": len(os.sched_getaffinity(0)) if device.platform == "cpu" else None,
            "versions": versions("google-tunix", "jax", "jaxlib", "flax"),
        }
    )
    learner.train(Turns(channel, w, cluster))


if __name__ == "__main__":
    main()
