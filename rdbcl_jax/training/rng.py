"""The rng of each of a run's draws, all from its seed: no two draws share one."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array

# a run's own steps stay far below these
_PRETASK, _OTHERS, _SURVEY, _REHEARSAL, _FILTER = (2**31 - n for n in (1, 2, 3, 4, 5))
_FISHER, _COLLECTED = 2**30, 2**30 + 2**20


def of_step(seed: int, run_step: int) -> Array:
    """For the responses of a step, counted through all tasks."""
    return jax.random.fold_in(jax.random.key(seed), run_step)


def of_others(step: Array) -> Array:
    """For the previous policy's responses in a step."""
    return jax.random.fold_in(step, _OTHERS)


def of_batch(seed: int, first_step: int, batch: int) -> np.random.Generator:
    """For the choice of the prompts of a batch of the task that begins with this step; a host's."""
    return np.random.default_rng((seed, first_step, batch))


def of_revision(seed: int, run_step: int) -> np.random.Generator:
    """For what a method draws itself when it revises the rollouts of a step; a host's."""
    return np.random.default_rng((seed, run_step))


def of_rehearsal(seed: int, task: int) -> np.random.Generator:
    """For which pictures of a task old questions are asked about; a host's."""
    return np.random.default_rng((seed, _REHEARSAL, task))


def of_survey(seed: int, run_step: int) -> Array:
    """For the responses to all prompts before a step."""
    return jax.random.fold_in(of_step(seed, run_step), _SURVEY)


def of_filter(seed: int, first_step: int) -> Array:
    """For the responses that choose the prompts of the task that begins with this step."""
    return jax.random.fold_in(of_step(seed, first_step), _FILTER)


def of_pretask_stats(seed: int, first_step: int) -> Array:
    """For the pre-task statistics of the task that begins with this step."""
    return jax.random.fold_in(of_step(seed, first_step), _PRETASK)


def of_fisher(seed: int, task: int) -> Array:
    """For the responses from which the Fisher information of a task is estimated."""
    return jax.random.fold_in(jax.random.key(seed), _FISHER + task)


def of_collected(seed: int, task: int) -> Array:
    """For the responses to a task that are kept for other runs: the same in and after a run."""
    return jax.random.fold_in(jax.random.key(seed), _COLLECTED + task)
