"""Every method by its name in `config.method`.

A method's own options are a section of the config that stands in its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import RunConfig
from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.methods.classic import ewc, joint, lwf, replay, zero_shot
from rdbcl_jax.methods.dyme import dyme
from rdbcl_jax.methods.gdpo import gdpo
from rdbcl_jax.methods.grpo import VARIANTS, grpo, one_shot
from rdbcl_jax.methods.method import Method
from rdbcl_jax.methods.mixture import sft_rl
from rdbcl_jax.methods.mssr import mssr
from rdbcl_jax.methods.options import with_options
from rdbcl_jax.methods.pcurl import pcurl
from rdbcl_jax.methods.portable_replay import portable_replay
from rdbcl_jax.methods.pseudo_rehearsal import pseudo_rehearsal
from rdbcl_jax.methods.rapo import rapo
from rdbcl_jax.methods.rdbcl import rdbcl
from rdbcl_jax.methods.reinforce_ada import reinforce_ada
from rdbcl_jax.methods.sft import rft_sft, sft
from rdbcl_jax.methods.shuffle_r1 import shuffle_r1

METHODS = {
    **dict.fromkeys(VARIANTS, grpo),
    "rdbcl": rdbcl,
    "mssr": mssr,
    "dyme": dyme,
    "sft": sft,
    "rft_sft": rft_sft,
    "rapo": rapo,
    "replay": replay,
    "portable_replay": portable_replay,
    "pseudo_rehearsal": pseudo_rehearsal,
    "ewc": ewc,
    "lwf": lwf,
    "joint": joint,
    "zero_shot": zero_shot,
    "one_shot": one_shot,
    "pcurl": pcurl,
    "shuffle_r1": shuffle_r1,
    "reinforce_ada": reinforce_ada,
    "gdpo": gdpo,
    "sft_rl": sft_rl,
}


def make_method(config: RunConfig | Mapping[str, Any]) -> Method:
    """The method that `config.method` names, from a run's settings or what they are made from.

    Raises:
      ValueError: an unknown name, or an option that the method's formulas refuse; they are tried on
        one sample here, before anything is compiled.
      FileNotFoundError: rollouts to learn from that are not there.
    """
    config = RunConfig.of(config)
    if config.method not in METHODS:
        raise ValueError(
            f"config.method is {config.method!r}, expected one of {sorted(METHODS)}"
            f"{did_you_mean(config.method, METHODS)}"
        )
    method = with_options(config, METHODS[config.method](config))
    if method.group and method.responses == "sampled" and config.rollout.samples == 1:
        raise ValueError(
            f"config.rollout.samples is 1, expected at least 2: {config.method} compares the "
            "responses of a prompt with each other"
        )
    least = method.fewest_prompts
    if method.responses == "sampled" and config.rollout.prompts < least.prompts:
        raise ValueError(
            f"config.rollout.prompts is {config.rollout.prompts}, expected at least "
            f"{least.prompts} for {config.method}: of fewer, {least.why}"
        )
    _try(method)
    return method


def _try(method: Method) -> None:
    def attempt():
        token, sample, seen = jnp.zeros((1, 1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1, 1), bool)
        batch = TrainBatch(
            prompts=None,
            tokens=token,
            mask=seen,
            reasoning_mask=seen,
            answer_mask=seen,
            rewards=sample,
            accuracies=sample,
            demonstrated=jnp.zeros((1, 1), bool),
            prompt_values=jnp.zeros(1),
            step=jnp.zeros((), jnp.int32),
            sampler_logps=token,
            old_logps=token,
            old_entropies=token,
            reference_logps=token,
            reference_is_policy=jnp.zeros((), bool),
            previous_logps=token,
            previous_is_policy=jnp.zeros((), bool),
            given=dict.fromkeys(method.given, sample),
        )
        found = method.targets(batch, token, token)
        method.loss(token, None, found.advantages, seen, reference_logps=token, kl_coef=0.0)

    jax.eval_shape(attempt)
