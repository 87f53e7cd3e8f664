"""Options that are set and do nothing: which they are, and that they do nothing indeed."""

import contextlib
import dataclasses
from typing import Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import RunConfig, default_config
from rdbcl_jax.methods import METHODS, make_method
from rdbcl_jax.methods.method import Fewest
from rdbcl_jax.methods.unread import of_methods, said, unread
from rdbcl_jax.sections import hints, inner
from rdbcl_jax.training.setup import prepare
from tests import engine

FOR_ALL = {"kl.beta": 0.1, "kl.kind": "k2", "loss.aggregation": "token_mean", "loss.clip_high": 0.3}


def config_of(name, **changes):
    config = default_config()
    config.method, config.rollout.samples = name, 1 if name == "mssr" else 8
    config.update_from_flattened_dict(changes)
    return RunConfig.of(config)


def found(name, **changes):
    config = config_of(name, **changes)
    return unread(config, make_method(config))


@pytest.mark.parametrize(
    "name,changes,names",
    [
        ("grpo", FOR_ALL, []),
        ("sft", FOR_ALL, ["loss.clip_high", "loss.aggregation", "kl.beta", "kl.kind"]),
        ("zero_shot", FOR_ALL, ["loss.clip_high", "loss.aggregation", "kl.beta", "kl.kind"]),
        ("sft", {"loss.mask_truncated": True}, ["loss.mask_truncated"]),
        # their own β is 0: the estimator of a KL term is read where one is asked for
        ("dapo", {"kl.kind": "k2", "kl.reference": "ema"}, ["kl.kind", "kl.reference"]),
        ("dapo", {"kl.kind": "k2", "kl.beta": 0.1}, []),
        ("grpo", {"kl.kind": "k2", "kl.beta": 0.0}, ["kl.kind"]),
        ("grpo", {"kl.ema_decay": 0.9}, ["kl.ema_decay"]),
        ("grpo", {"kl.ema_decay": 0.9, "kl.reference": "ema"}, []),
        # its β is by portability
        ("rdbcl", {"kl.beta": 0.1, "portability.beta_max": 0.2}, ["kl.beta"]),
        ("grpo", {"kl.beta": 0.1, "portability.beta_max": 0.2}, ["portability.beta_max"]),
        ("grpo", {"kl.portability": True, "portability.beta_max": 0.2}, []),
        ("sapo", {"loss.clip_high": 0.3}, ["loss.clip_high"]),
        ("grpo", {"loss.surrogate": "sapo", "loss.clip_high": 0.3}, ["loss.clip_high"]),
        ("grpo", {"prompts.samples": 4}, ["prompts.samples"]),
        ("grpo", {"prompts.samples": 4, "prompts.filter": "mixed"}, []),
        ("vas", {"prompts.samples": 4}, []),
        ("grpo", {"replay.fraction": 0.5}, ["replay.fraction"]),
        ("portable_replay", {"replay.fraction": 0.5, "portability.beta_max": 0.2}, []),
        ("sft_rl", {"demonstrations.share": 0.25, "kl.beta": 0.1}, []),
        ("sft", {"demonstrations.share": 0.25}, ["demonstrations.share"]),
        (
            "dyme",
            {"dyme.memorise": False, "demonstrations.target": "answer"},
            ["demonstrations.target"],
        ),
        ("rapo", {"rapo.weight": 0.1, "mssr.window": 2}, ["mssr.window"]),
    ],
)
def test_what_a_method_does_not_read_of_what_is_set(name, changes, names):
    assert found(name, **changes) == names


def test_nothing_is_said_of_defaults():
    assert not [name for name in METHODS.keys() - {"rft_sft"} if found(name)]


def test_a_run_says_it_in_a_line():
    config = engine.small_config()
    config.method, config.kl.beta, config.loss.aggregation = "sft", 0.1, "token_mean"
    line = "sft does not read loss.aggregation, kl.beta: set, to no effect"
    assert said(RunConfig.of(config), make_method(config)) == [line]
    assert prepare(RunConfig.of(config)).notes == [line]
    config.method = "grpo"
    assert prepare(RunConfig.of(config)).notes == []


def another(hint, value):
    """Another legal value of an option of the loss or the KL term."""
    kind, _ = inner(hint)
    if get_origin(kind) is Literal:
        return next(name for name in get_args(kind) if name != value)
    return not value if kind is bool else 0.7


def outcome(method):
    """What the method makes of a batch far from the policy that sampled it, and its fields."""
    shape, rng = (2, 4, 3), np.random.default_rng(0)
    logps, old, reference, previous = -np.exp(rng.normal(size=(4, *shape))).astype(np.float32)
    rewards, ones = rng.normal(size=shape[:2]).astype(np.float32), np.ones(shape, bool)
    batch = TrainBatch(
        prompts=None,
        tokens=np.zeros(shape, int),
        mask=ones,
        reasoning_mask=ones,
        answer_mask=ones,
        rewards=rewards,
        accuracies=(rewards > 0).astype(np.float32),
        demonstrated=np.arange(4) == np.zeros((2, 1)),
        prompt_values=rewards[:, 0],
        step=jnp.asarray(3),
        sampler_logps=old,
        reference_logps=reference,
        previous_logps=previous,
        given=dict.fromkeys(method.given, rewards),
    )
    found = method.targets(batch, old, -old)
    at = {"reference_logps": reference if method.reference else None, "kl_coef": found.kl_coef}
    terms = method.loss(logps, old, found.advantages, ones, **at)
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    plain = {name: v for name, v in fields.items() if isinstance(v, str | int | float | Fewest)}
    there = {name for name, value in fields.items() if value is not None}
    return jax.tree.map(float, terms), plain, there


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"rft_sft", "zero_shot"}))
def test_what_is_said_to_do_nothing_does_nothing(name):
    """Whatever of the loss and the KL term is named leaves the loss as it was."""
    plain = config_of(name)
    method = make_method(plain)
    options = {
        f"{title}.{field}": another(hint, getattr(section, field))
        for title, section in of_methods(plain).items()
        if title in ("loss", "kl")
        for field, hint in hints(type(section)).items()
    }
    tried = 0
    for option in options.keys() - method.reads:
        changes = {option: options[option]}
        with contextlib.suppress(ValueError):  # such are refused, or read where they are set
            tried += found(name, **changes) == [option]
            assert outcome(make_method(config_of(name, **changes))) == outcome(method), option
    assert tried
