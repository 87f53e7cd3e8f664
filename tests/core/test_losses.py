"""The policy loss against float64, exact expectations, and what must not change it."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdbcl_jax import mean_terms, policy_loss, policy_loss_terms

AGGREGATIONS = ["sequence_mean", "token_mean", "constant"]
LEVELS = ["token", "sequence"]
seeds = st.integers(0, 2**32 - 1)


def batch(seed=0, B=6, T=8):
    rng = np.random.default_rng(seed)
    logps = -rng.exponential(1.0, (B, T))
    mask = np.arange(T) < rng.integers(0, T + 1, B)[:, None]
    mask[0], mask[1] = True, False
    return {
        "logps": logps,
        "old_logps": logps + rng.normal(0, 0.3, (B, T)),
        "advantages": rng.normal(0, 1, B),
        "mask": mask,
        "reference_logps": logps + rng.normal(0, 1.0, (B, T)),
        "kl_coef": rng.uniform(0.01, 0.1, B),
    }


def reference_loss(b, kind="k3", low=0.2, high=0.3, dual=None, level="token", how="token_mean"):
    """The documented formula in float64, one token at a time."""
    rows = []
    for i in range(len(b["mask"])):
        where = np.flatnonzero(b["mask"][i])
        ratios = np.exp((b["logps"] - b["old_logps"])[i, where])
        if level == "sequence" and len(where):
            ratios = np.full_like(ratios, np.exp(np.log(ratios).mean()))
        losses = []
        for t, ratio in zip(where, ratios, strict=True):
            A = b["advantages"][i]
            gain = min(ratio * A, np.clip(ratio, 1 - low, 1 + high) * A)
            if dual is not None and A < 0:
                gain = max(gain, dual * A)
            d = b["reference_logps"][i, t] - b["logps"][i, t]
            kl = {
                "k2": d * d / 2,
                "k3": np.exp(d) - d - 1,
                "k3_bounded": np.exp(d) - d - 1
                if d < np.log(10)
                else 9 * (d + 1) - 10 * np.log(10),
            }[kind]
            losses.append(-gain + b["kl_coef"][i] * kl)
        if losses:
            rows.append(losses)
    if how == "sequence_mean":
        return np.mean([np.mean(row) for row in rows])
    total = sum(map(sum, rows))
    return total / sum(map(len, rows)) if how == "token_mean" else total / (len(rows) * 10)


OPTIONS = {"clip_low": 0.2, "clip_high": 0.3, "max_length": 10}


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("kind", "dual"), [("k2", None), ("k3", 1.4), ("k3_bounded", None)])
def test_matches_float64(how, level, kind, dual):
    b = batch(2)
    options = OPTIONS | {"kl_kind": kind, "dual_clip": dual, "ratio_level": level}
    loss, metrics = policy_loss(**b, **options, aggregation=how)
    expected = reference_loss(b, kind, dual=dual, level=level, how=how)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    parts = metrics["policy_loss"] + metrics["kl_loss"]
    np.testing.assert_allclose([metrics["loss"], parts], loss, rtol=1e-6)


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_gradient_matches_finite_differences_of_float64(how, level):
    b = batch(4, B=3, T=4)
    gradient = jax.grad(
        lambda x: policy_loss(**b | {"logps": x}, **OPTIONS, ratio_level=level, aggregation=how)[0]
    )(jnp.float32(b["logps"]))
    for index in np.ndindex(b["logps"].shape):
        delta = np.zeros_like(b["logps"])
        delta[index] = 1e-6
        up, down = (
            reference_loss(b | {"logps": b["logps"] + s * delta}, level=level, how=how)
            for s in (1, -1)
        )
        np.testing.assert_allclose(gradient[index], (up - down) / 2e-6, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_nothing_behind_the_mask_matters(how, level, garbage):
    b = batch(5)
    mask = b["mask"]
    hidden = {
        name: np.where(mask, b[name], garbage) for name in ("logps", "old_logps", "reference_logps")
    }
    for name in ("advantages", "kl_coef"):
        hidden[name] = np.where(mask.any(-1), b[name], garbage)

    def run(b):
        def loss(logps):
            options = OPTIONS | {"ratio_level": level, "aggregation": how, "dual_clip": 2.0}
            return policy_loss(**b | {"logps": logps}, **options)

        return jax.value_and_grad(loss, has_aux=True)(jnp.float32(b["logps"]))

    clean, dirty = run(b), run(b | hidden)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert np.isfinite(dirty[1]).all() and not dirty[1][~mask].any()


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_batch_of_empty_sequences_has_loss_zero(how):
    b = batch(1) | {"mask": np.zeros((6, 8), bool)}
    loss, metrics = policy_loss(**b, **OPTIONS, aggregation=how)
    assert loss == 0 and all(value == 0 for value in metrics.values())


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_accumulation_over_micro_batches_is_exact(how, level):
    options = OPTIONS | {"aggregation": how, "ratio_level": level, "kl_kind": "k3_bounded"}
    names = ["logps", *sorted(batch().keys() - {"logps"})]

    @jax.jit
    def terms_and_gradient(*arrays):
        def terms(*arrays):
            terms = policy_loss_terms(**dict(zip(names, arrays, strict=True)), **options)
            return terms.loss_sum, terms

        (_, terms), gradient = jax.value_and_grad(terms, has_aux=True)(*arrays)
        return terms, gradient

    for seed in range(3):
        b = batch(seed)
        b["mask"][2:4] = False  # one micro-batch without a single token
        arrays = [b[name] for name in names]
        parts = [terms_and_gradient(*(x[i : i + 2] for x in arrays)) for i in (0, 2, 4)]
        totals = jax.tree.map(lambda *xs: sum(xs), *(terms for terms, _ in parts))
        gradient = np.concatenate([g for _, g in parts]) / totals.normaliser
        whole, whole_gradient = terms_and_gradient(*arrays)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            (mean_terms(totals), gradient),
            (mean_terms(whole), whole_gradient / whole.normaliser),
        )


@cache
def jitted_loss(how):
    return jax.jit(lambda b: policy_loss(**b, **OPTIONS, aggregation=how)[0])


@settings(max_examples=30, deadline=None)
@given(seed=seeds, how=st.sampled_from(AGGREGATIONS))
def test_neither_order_nor_padding_matters(seed, how):
    b = batch(seed)
    order = np.random.default_rng(seed).permutation(6)
    loss = jitted_loss(how)(b)
    shuffled = {k: v[order] for k, v in b.items()}
    np.testing.assert_allclose(loss, jitted_loss(how)(shuffled), rtol=1e-5, atol=1e-6)
    padded = {k: np.concatenate([v, np.zeros_like(v)]) for k, v in b.items()}
    np.testing.assert_allclose(loss, jitted_loss(how)(padded), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_on_policy_gradient_is_the_policy_gradient(level):
    b = batch(7)
    logps, mask = jnp.float32(b["logps"]), b["mask"]
    gradient = jax.grad(
        lambda x: policy_loss(x, None, b["advantages"], mask, ratio_level=level)[0]
    )(logps)
    weight = mask / np.maximum(mask.sum(-1, keepdims=True), 1) / mask.any(-1).sum()
    np.testing.assert_allclose(gradient, -weight * b["advantages"][:, None], rtol=1e-5, atol=1e-8)
    same = jax.grad(
        lambda x: policy_loss(x, x, b["advantages"], mask, ratio_level=level, clip_low=0.0)[0]
    )(logps)  # old_logps carry no gradient, and r = 1 is inside any clip range
    np.testing.assert_allclose(gradient, same, rtol=1e-6)


def test_only_logps_carry_gradient():
    b = batch(8)
    names = ("old_logps", "advantages", "reference_logps", "kl_coef")
    gradients = jax.grad(lambda xs: policy_loss(**b | dict(zip(names, xs, strict=True)))[0])(
        [jnp.float32(b[name]) for name in names]
    )
    assert not any(g.any() for g in gradients)


def test_shapes_of_advantages_and_coefficients():
    b = batch(9)
    full = {k: np.repeat(b[k][:, None], 8, 1) for k in ("advantages", "kl_coef")}
    np.testing.assert_allclose(policy_loss(**b)[0], policy_loss(**b | full)[0], rtol=1e-6)
    scalar = policy_loss(**b | {"kl_coef": 0.05})[0]
    rows = policy_loss(**b | {"kl_coef": np.full(6, 0.05)})[0]
    np.testing.assert_allclose(scalar, rows, rtol=1e-6)
    grouped = {k: v.reshape(2, 3, *v.shape[1:]) for k, v in b.items()}  # [P, G, T]
    np.testing.assert_allclose(policy_loss(**b)[0], policy_loss(**grouped)[0], rtol=1e-6)


def test_each_sample_has_its_own_anchor():
    b = batch(10)
    coefficients = np.zeros(6)
    coefficients[2] = 0.3
    b["mask"][2] = True
    _, metrics = policy_loss(**b | {"kl_coef": coefficients}, aggregation="token_mean")
    d = (b["reference_logps"] - b["logps"])[2]
    expected = 0.3 * (np.exp(d) - d - 1).sum() / b["mask"].sum()
    np.testing.assert_allclose(metrics["kl_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_coef"], 0.3 / b["mask"].any(-1).sum(), rtol=1e-5)


def test_kl_is_exactly_zero_while_policy_and_reference_are_one():
    b = batch(11)
    _, metrics = policy_loss(**b | {"reference_logps": b["logps"]})
    assert metrics["kl"] == 0 and metrics["kl_loss"] == 0
    assert "kl" not in policy_loss(b["logps"], None, b["advantages"], b["mask"])[1]


@pytest.mark.parametrize("level", LEVELS)
def test_ratios_beyond_float32_leave_loss_and_gradient_finite(level):
    old = jnp.full((2, 3), -500.0)
    loss, gradient = jax.value_and_grad(
        lambda x: policy_loss(x, old, jnp.array([1.0, -1.0]), old < 0, ratio_level=level)[0]
    )(jnp.full((2, 3), -1.0))
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_bounded_fraction_and_clip_metrics():
    zeros, mask = jnp.zeros((1, 4)), jnp.array([[1, 1, 1, 0]])
    reference = jnp.array([[5.0, 0.0, 0.0, 9.0]])
    old = jnp.log(jnp.array([[0.5, 1.0, 2.0, 0.1]]))  # ratios 2, 1, ½, 10
    run = {"reference_logps": reference, "kl_coef": 1.0, "kl_kind": "k3_bounded"}
    _, up = policy_loss(zeros, old, jnp.ones(1), mask, **run)
    _, down = policy_loss(zeros, old, -jnp.ones(1), mask, **run)
    np.testing.assert_allclose(up["kl/bounded_fraction"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose([up["clip_ratio/high_mean"], up["clip_ratio/low_mean"]], [1 / 3, 0])
    np.testing.assert_allclose(
        [down["clip_ratio/high_mean"], down["clip_ratio/low_mean"]], [0, 1 / 3]
    )
    np.testing.assert_allclose([m["clip_ratio/region_mean"] for m in (up, down)], 1 / 3)
    np.testing.assert_allclose([m["clip_ratio/region_mean"] for m in (up, down)], 1 / 3)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weighted_k3_gives_the_reverse_kl_gradient_off_policy(level):
    """Exact enumeration over all two-token sequences of a categorical policy."""
    rng = np.random.default_rng(0)
    logits, old_logits, reference_logits = (
        jax.nn.log_softmax(jnp.float32(rng.normal(0, 1, 4))) for _ in range(3)
    )
    sequences = np.array(list(itertools.product(range(4), repeat=2)))

    def expected(logits, weighted):
        logps = jax.nn.log_softmax(logits)[sequences]
        old = old_logits[sequences]
        probability = jnp.exp(old.sum(-1))

        def one(logps, old, reference):
            return policy_loss(
                logps[None],
                old[None],
                jnp.zeros(1),
                jnp.ones((1, 2), bool),
                reference_logps=reference[None],
                kl_coef=1.0,
                kl_importance_weighted=weighted,
                ratio_level=level,
            )[0]

        return (probability * jax.vmap(one)(logps, old, reference_logits[sequences])).sum()

    def by_the_sequence(logits):
        """TRL 1.16's with a ratio per sequence, the mean of whose logarithm has a gradient."""
        logps = jax.nn.log_softmax(logits)[sequences]
        old, d = old_logits[sequences], reference_logits[sequences] - logps
        ratio = jnp.exp((logps - old).mean(-1))
        return (jnp.exp(old.sum(-1)) * ratio * (jnp.exp(d) - d - 1).mean(-1)).sum()

    def reverse_kl(logits):
        p = jax.nn.log_softmax(logits)
        return (jnp.exp(p) * (p - reference_logits)).sum()

    exact = jax.grad(reverse_kl)(logits)
    np.testing.assert_allclose(jax.grad(expected)(logits, True), exact, atol=1e-5)
    assert not np.allclose(jax.grad(expected)(logits, False), exact, atol=1e-2)
    assert not np.allclose(jax.grad(by_the_sequence)(logits), exact, atol=1e-2)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_transforms(how):
    b = {k: jnp.float32(v) for k, v in batch(12).items()}
    f = lambda b: policy_loss(**b, **OPTIONS, aggregation=how)  # noqa: E731
    two = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), b)
    losses = jax.vmap(f)(two)[0]
    np.testing.assert_allclose(losses, jax.jit(f)(b)[0], rtol=1e-5)
    low = {k: v.astype(jnp.bfloat16) for k, v in b.items()} | {"mask": b["mask"]}
    assert f(low)[0].dtype == jnp.float32


BAD = [
    ({"kl_kind": "k1"}, "expected gradient"),
    ({"kl_kind": "k9"}, "k3_bounded"),
    ({"aggregation": "mean"}, "sequence_mean"),
    ({"aggregation": "constant"}, "max_length"),
    ({"ratio_level": "word"}, "sequence"),
    ({"dual_clip": 1.1}, "dual_clip"),
    ({"advantages": np.zeros(5)}, "advantages"),
    ({"mask": np.ones((6, 7))}, "mask"),
    ({"old_logps": np.zeros(6)}, "old_logps"),
    ({"kl_coef": np.zeros((8,))}, "kl_coef"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_errors_say_what_to_do(change, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(**batch() | change)
