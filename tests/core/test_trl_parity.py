"""The loss, advantages and fused head against numbers made once by TRL (data/README.md)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rdbcl_jax import group_advantages, policy_loss, token_logprobs
from rdbcl_jax.core.advantages import high_entropy_advantages, normalise

TRL = json.loads((Path(__file__).parent / "data" / "trl.json").read_text())
CASES = {case["name"]: case for case in TRL["cases"]}
AGGREGATIONS = {
    "grpo": "sequence_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "dr_grpo": "constant",
    "sapo": "sequence_mean",
}


def array(name):
    return np.array(TRL[name], np.float32)


def ours(case):
    """(loss, metrics), gradient of our loss under the case's options."""
    trl = case["trl"]
    epsilon = trl.get("epsilon", 0.2)
    options = {
        "clip_low": epsilon,
        "clip_high": trl.get("epsilon_high", epsilon),
        "dual_clip": trl.get("delta"),
        "ratio_level": trl.get("importance_sampling_level", "token"),
        "aggregation": AGGREGATIONS[trl["loss_type"]],
        "max_length": TRL["max_length"],
        "kl_importance_weighted": trl["use_bias_correction_kl"],
    }
    if trl["beta"]:
        options |= {"kl_coef": trl["beta"], "reference_logps": array("reference_logps")}
    old = None if case["on_policy"] else array("old_logps")
    advantages = array("token_advantages" if case["token_advantages"] else "advantages")
    mask = np.array(case["mask"], bool)

    @jax.value_and_grad
    def loss(logps):
        return policy_loss(logps, old, advantages, mask, **options)[0]

    metrics = policy_loss(array("logps"), old, advantages, mask, **options)[1]
    return *loss(array("logps")), metrics


@pytest.mark.parametrize("name", [name for name in CASES if name != "grpo-empty-row"])
def test_loss_gradient_and_metrics(name):
    case = CASES[name]
    loss, gradient, metrics = ours(case)
    np.testing.assert_allclose(loss, case["loss"], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, case["grad"], rtol=1e-4, atol=1e-7)
    additive = {k: v for k, v in case["metrics"].items() if not k.endswith(("_min", "_max"))}
    assert {"clip_ratio/low_mean", "clip_ratio/region_mean"} <= additive.keys()
    for key, value in additive.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("case", TRL["entropy_cases"], ids=lambda case: case["name"])
def test_soft_gate_entropy_bonus_and_tokens_of_high_entropy(case):
    trl, mask = case["trl"], np.array(case["mask"], bool)
    advantages, entropies = array("advantages"), array("entropies")
    if share := trl.get("top_entropy_quantile"):
        advantages = high_entropy_advantages(advantages, entropies, mask, share=share)
    options = {
        "clip_low": trl["epsilon"],
        "clip_high": trl["epsilon_high"],
        "surrogate": "sapo" if trl["loss_type"] == "sapo" else "ppo",
        "aggregation": AGGREGATIONS[trl["loss_type"]],
        "entropy_coef": trl.get("entropy_coef", 0.0),
    }
    if trl["beta"]:
        options |= {"kl_coef": trl["beta"], "reference_logps": array("reference_logps")}

    def loss(logps, entropies):
        old = array("old_logps")
        return policy_loss(logps, old, advantages, mask, entropies=entropies, **options)[0]

    found, gradients = jax.value_and_grad(loss, (0, 1))(array("logps"), entropies)
    np.testing.assert_allclose(found, case["loss"], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(gradients[0], case["grad"], rtol=1e-4, atol=1e-7)
    zero = np.zeros_like(entropies)
    np.testing.assert_allclose(gradients[1], case.get("entropy_grad", zero), rtol=1e-4, atol=1e-8)


def test_rewards_normalised_before_their_sum():
    case = TRL["gdpo"]
    rewards = np.array(case["rewards"]).reshape(2, -1, case["group_size"])
    summed = sum(w * group_advantages(r) for w, r in zip(case["weights"], rewards, strict=True))
    np.testing.assert_allclose(normalise(summed).ravel(), case["advantages"], rtol=1e-4, atol=1e-6)


def test_an_empty_sequence_counts_in_their_mean_and_not_in_ours():
    case = CASES["grpo-empty-row"]
    loss, gradient, _ = ours(case)
    rows = len(case["mask"])
    np.testing.assert_allclose(loss * (rows - 1) / rows, case["loss"], rtol=2e-5)
    np.testing.assert_allclose(gradient * (rows - 1) / rows, case["grad"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", TRL["advantages_cases"], ids=lambda case: case["scale"])
def test_group_advantages(case):
    rewards = np.array(case["rewards"]).reshape(-1, case["group_size"])
    scale = {"group": "std", "none": "none"}[case["scale"]]
    advantages = group_advantages(rewards, scale=scale)
    np.testing.assert_allclose(advantages.ravel(), case["advantages"], rtol=1e-5, atol=1e-7)


def test_fused_head():
    head = {key: np.array(value) for key, value in TRL["head"].items()}
    hidden, lm_head = head["hidden"].astype(np.float32), head["lm_head"].astype(np.float32)

    def outputs(lm_head):
        options = {"chunk_size": 7, "temperature": 0.8, "return_entropy": True}
        return token_logprobs(hidden, lm_head, head["tokens"], **options)

    logps, entropies = outputs(lm_head)
    np.testing.assert_allclose(logps, head["logps"], rtol=1e-5)
    np.testing.assert_allclose(entropies, head["entropies"], rtol=1e-5)
    gradient = jax.grad(lambda w: (outputs(w)[0] * head["cotangent"]).sum())(lm_head)
    np.testing.assert_allclose(gradient, head["dlm_head"], rtol=1e-4, atol=1e-6)
