"""Each method's formula, against numbers worked out by hand."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import RunConfig, default_config
from rdbcl_jax.core.kl import kl_estimate
from rdbcl_jax.core.losses import mean_terms
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import METHODS, make_method
from rdbcl_jax.methods.grpo import VARIANTS
from rdbcl_jax.methods.method import Method
from rdbcl_jax.methods.sft import negative_log_likelihood
from rdbcl_jax.rewards.functions import FunctionFailed
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.training.setup import dry


def method(name, **changes):
    config = default_config()
    config.method = name
    config.update_from_flattened_dict(changes)
    return make_method(config)


# probabilities under the policy that sampled; the second rollout's reasoning has moved away
POLICY = jnp.log(jnp.array([[[0.5, 0.5, 0.1, 0.4], [1.0, 1.0, 0.1, 0.8]]] * 2))


@pytest.fixture
def batch():
    """Two prompts, two rollouts each, four tokens: two of reasoning, one tag, one answer."""
    shape = (2, 2, 4)
    spans = jnp.broadcast_to(
        jnp.array([[True, True, False, False], [False, False, False, True]])[:, None, None],
        (2, *shape),
    )
    previous = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.5, 0.1, 0.8])), shape)
    return TrainBatch(
        prompts=None,
        tokens=jnp.zeros(shape, int),
        mask=jnp.ones(shape, bool),
        reasoning_mask=spans[0],
        answer_mask=spans[1],
        rewards=jnp.array([[1.0, 0.0], [1.0, 1.0]]),
        accuracies=jnp.array([[1.0, 0.0], [1.0, 1.0]]),
        demonstrated=jnp.zeros(shape[:2], bool),
        prompt_values=jnp.array([0.25, 0.5]),
        step=jnp.asarray(7),
        sampler_logps=POLICY,
        reference_logps=previous,
        previous_logps=previous,
    )


def targets(name, batch, **changes):
    return method(name, **changes).targets(batch, POLICY, None)


def changed(batch, **arrays):
    return dataclasses.replace(batch, **{k: jnp.asarray(v) for k, v in arrays.items()})


GROUP = [[0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)], [0, 0]]


# ---------------------------------------------------------------------- GRPO and its variants


def test_grpo(batch):
    found = targets("grpo", batch, **{"kl.beta": 0.3})
    np.testing.assert_allclose(found.kl_coef, np.full((2, 2), 0.3), rtol=1e-6)
    np.testing.assert_allclose(found.advantages, GROUP, rtol=1e-5)
    assert found.values == {}
    assert method("grpo").reference == "previous"
    assert method("grpo", **{"kl.beta": 0.0}).reference is None


@pytest.mark.parametrize(
    "name,changes,advantages",
    [
        ("dr_grpo", {}, [[0.5, -0.5], [0, 0]]),
        ("rloo", {}, [[1.0, -1.0], [0, 0]]),
        ("grpo", {"loss.advantage_scale": "none"}, [[0.5, -0.5], [0, 0]]),
        ("dapo", {}, GROUP),
    ],
)
def test_advantages_of_the_variants(batch, name, changes, advantages):
    np.testing.assert_allclose(targets(name, batch, **changes).advantages, advantages, rtol=1e-5)


ALONE = {"mssr", "sft", "rft_sft", "zero_shot"}  # one response to a prompt, or none


@pytest.mark.parametrize("name", sorted(METHODS.keys() - ALONE))
def test_what_compares_responses_of_a_prompt_asks_for_two(name):
    found = rf"samples is 1, expected .*: {name} |at most the 1 of rollout\.samples"
    with pytest.raises(ValueError, match=found):
        method(name, **{"rollout.samples": 1})


def test_options_of_the_variants_are_theirs_unless_the_config_sets_them():
    found = {name: method(name).loss.keywords for name in VARIANTS}
    assert found["grpo"]["aggregation"] == "sequence_mean" and found["grpo"]["clip_high"] == 0.2
    assert found["dr_grpo"]["aggregation"] == "constant" and found["dr_grpo"]["max_length"] == 1024
    assert found["dapo"]["aggregation"] == "token_mean" and found["dapo"]["clip_high"] == 0.28
    assert found["gspo"]["ratio_level"] == "sequence" and found["gspo"]["clip_low"] == 3e-4
    assert found["cispo"]["surrogate"] == "cispo"
    assert method("dapo").revise and not method("grpo").revise
    changed = method("dapo", **{"loss.clip_high": 0.5, "rollout.resample": 0, "kl.beta": 0.1})
    assert changed.loss.keywords["clip_high"] == 0.5 and not changed.revise
    assert changed.reference == "previous" and method("dapo").reference is None
    assert method("grpo", **{"kl.reference": "ema"}).reference == "ema"
    without = {name for name in VARIANTS if method(name).reference is None}  # their β is 0
    assert without == {"dr_grpo", "dapo", "gspo", "cispo", "sapo"}


# ---------------------------------------------------------------------- RDB-CL and its controls


@pytest.mark.parametrize(
    "level,kind,expected",
    [
        ("reasoning", "ratio", [1.0, 0.5]),  # exp(mean log(0.5 / p))
        ("answer", "ratio", [2.0, 1.0]),
        ("response", "ratio", [2 ** (1 / 3), 0.25 ** (1 / 3)]),
        ("reasoning", "confidence", [0.5, 0.5]),
        ("answer", "confidence", [0.8, 0.8]),
    ],
)
def test_rdbcl_portability(batch, level, kind, expected):
    options = {"portability.level": level, "portability.kind": kind}
    # RP is held against the policy from before the task, whatever the reference is
    elsewhere = changed(batch, reference_logps=jnp.full(batch.mask.shape, -9.0))
    found = targets("rdbcl", elsewhere, **options)
    np.testing.assert_allclose(found.values["rp"], [expected] * 2, rtol=1e-5)
    assert method("rdbcl", **options).previous


def test_static_portability_is_the_prompts(batch):
    static = method("rdbcl", **{"portability.kind": "static"})
    assert static.pretask == "confidence" and not static.previous
    rp = static.targets(batch, POLICY, None).values["rp"]
    np.testing.assert_allclose(rp, [[0.25, 0.25], [0.5, 0.5]])


RANGE = {"portability.beta_min": 0.1, "portability.beta_max": 0.5}


def test_rdbcl_anchors_what_carries_over_and_relaxes_the_rest(batch):
    beta = targets("rdbcl", batch, **RANGE).kl_coef
    # RP is 1 and 0.5, twice each: z = ±1
    up = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(beta, [[0.1 + 0.4 * up, 0.1 + 0.4 * (1 - up)]] * 2, rtol=1e-5)
    clipped = targets("rdbcl", batch, **RANGE, **{"portability.mapping": "clip"}).kl_coef
    np.testing.assert_allclose(clipped, [[0.5, 0.3]] * 2, rtol=1e-5)


def test_controls(batch):
    def beta(control, batch=batch):
        changes = {**RANGE, "portability.mapping": "clip", "portability.control": control}
        return np.asarray(targets("rdbcl", batch, **changes).kl_coef)

    np.testing.assert_allclose(beta("matched"), np.full((2, 2), 0.4), rtol=1e-5)
    np.testing.assert_allclose(beta("inverted"), [[0.1, 0.3]] * 2, rtol=1e-5)
    # the KL of each sample, exp(d) − d − 1 with d = log π_ref − log π; of a token that is alike, 0
    still, moved = (2 - np.log(2) - 1) / 4, (2 * (0.5 + np.log(2) - 1)) / 4
    strength = (0.5 * still + 0.3 * moved) / (still + moved)
    np.testing.assert_allclose(beta("strength"), np.full((2, 2), strength), rtol=1e-5)
    # p = 1/2 and 1
    np.testing.assert_allclose(beta("accuracy"), [[0.1, 0.1], [0.5, 0.5]], rtol=1e-5)
    dealt = [beta("shuffled", changed(batch, step=s)) for s in range(8)]
    assert all(sorted(d.ravel()) == sorted(beta("none").ravel()) for d in dealt)
    assert any((d != beta("none")).any() for d in dealt)
    np.testing.assert_array_equal(dealt[3], beta("shuffled", changed(batch, step=3)))


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_strength_is_of_the_same_kl_loss(batch, aggregation):
    lengths = jnp.arange(4)[None, None] < jnp.array([[4, 2], [3, 4]])[..., None]
    batch = changed(batch, mask=lengths)
    kl = kl_estimate(POLICY, batch.reference_logps, "k3") * lengths
    weights = 1 / lengths.sum(-1) if aggregation == "sequence_mean" else 1.0

    def loss(control):
        asked = {**RANGE, "portability.control": control, "loss.aggregation": aggregation}
        return float((targets("rdbcl", batch, **asked).kl_coef * kl.sum(-1) * weights).sum())

    assert loss("strength") == pytest.approx(loss("none"), rel=1e-5)
    assert loss("matched") != pytest.approx(loss("none"), rel=1e-3)


@pytest.mark.parametrize("name", ["grpo", "mssr", "dapo", "dr_grpo"])
def test_strength_is_of_the_kl_loss_that_the_method_has(batch, name):
    lengths = jnp.arange(4)[None, None] < jnp.array([[4, 2], [3, 4]])[..., None]
    batch = changed(batch, mask=lengths)

    def loss(control):
        asked = {**RANGE, "kl.portability": True, "portability.control": control}
        chosen = method(name, **asked, **({"rollout.samples": 1} if name == "mssr" else {}))
        beta = chosen.targets(batch, POLICY, None).kl_coef
        found = chosen.loss(
            POLICY,
            POLICY,
            jnp.zeros((2, 2)),
            lengths,
            reference_logps=batch.reference_logps,
            kl_coef=beta,
        )
        return float(mean_terms(found)[0])

    assert loss("strength") == pytest.approx(loss("none"), rel=1e-5)


@pytest.mark.parametrize("control", ["none", "matched", "strength", "shuffled"])
def test_a_response_that_is_masked_whole_changes_nothing_for_others(batch, control):
    """Its log-probs are of no text: the engine read it masked."""
    cut = changed(batch, mask=batch.mask.at[0, 1].set(False))
    other = POLICY.at[0, 1].set(-7.0)
    chosen = method("rdbcl", **RANGE, **{"portability.control": control})
    one, two = (chosen.targets(cut, logps, None) for logps in (POLICY, other))
    np.testing.assert_array_equal(one.kl_coef, two.kl_coef)
    assert one.values["rp"][0, 1] == 1
    if control == "shuffled":
        kept = jnp.array([True, False, True, True])
        plain = targets("rdbcl", cut, **RANGE).kl_coef.reshape(-1)
        np.testing.assert_allclose(
            np.sort(one.kl_coef.reshape(-1)[kept]), np.sort(plain[kept]), rtol=1e-6
        )


def test_of_a_response_that_is_masked_whole_rapo_knows_no_distance(batch):
    cut = changed(batch, mask=batch.mask.at[0, 1].set(False), rewards=jnp.zeros((2, 2)))
    found = targets("rapo", cut)
    assert found.values["retention"][0, 1] == found.values["retention"][0, 0]
    np.testing.assert_array_equal(found.advantages[0], 0)


def test_what_nobody_judged_keeps_its_anchor_and_an_inverted_one_is_verified_too(batch):
    options = {**RANGE, "portability.mapping": "clip", "portability.verified": True}
    unknown = changed(batch, accuracies=[[1.0, np.nan], [1.0, 0.0]])
    beta = targets("rdbcl", unknown, **options).kl_coef
    np.testing.assert_allclose(beta, [[0.5, 0.3], [0.5, 0.1]], rtol=1e-5)
    inverted = targets("rdbcl", unknown, **options, **{"portability.control": "inverted"}).kl_coef
    np.testing.assert_allclose(inverted, [[0.1, 0.3], [0.1, 0.1]], rtol=1e-5)


def test_ours_anchor_what_is_right_and_replay(batch):
    options = {**RANGE, "portability.mapping": "clip", "portability.verified": True}
    beta = targets("rdbcl", batch, **options).kl_coef
    np.testing.assert_allclose(beta, [[0.5, 0.1], [0.5, 0.3]], rtol=1e-5)
    replays = method("portable_replay", **options)
    assert replays.data == "replay" and replays.reference == "previous"
    np.testing.assert_array_equal(replays.targets(batch, POLICY, None).kl_coef, beta)


def test_pseudo_rehearsal_is_replay_of_questions_with_an_anchor_and_merged_weights(batch):
    second, found = changed(batch, replayed=[False, True]), method("pseudo_rehearsal")
    spelt = {"kl.beta": 0.3, "replay.kept": "questions", "training.merge": 0.2}
    same = method("replay", **spelt)
    fields = {f.name for f in dataclasses.fields(Method)} - {"name", "targets", "loss", "prompts"}
    for name in fields - {"fewest_prompts", "filter"}:
        assert getattr(found, name) == getattr(same, name), name
    assert (found.data, found.merge, found.reference) == ("questions", 0.2, "previous")
    assert found.rehearses and method("replay").rehearses and not method("grpo").rehearses
    pairs = (m.targets(second, POLICY, None) for m in (found, same))
    jax.tree.map(np.testing.assert_array_equal, *pairs)
    own = method("pseudo_rehearsal", **{"kl.beta": 0.1, "training.merge": 0.5})
    assert own.merge == 0.5 and method("grpo").merge == 0
    assert method("pseudo_rehearsal", **{"training.merge": 0.0}).merge == 0
    np.testing.assert_allclose(own.targets(second, POLICY, None).kl_coef, np.full((2, 2), 0.1))
    with pytest.raises(ValueError, match=r"prompts is 'mastered', .* pseudo_rehearsal keeps none"):
        method("pseudo_rehearsal", **{"replay.prompts": "mastered"})


def test_replay_anchors_all_samples_or_those_of_old_prompts(batch):
    second = changed(batch, replayed=[False, True])
    for anchor, expected in (("all", [[0.3, 0.3], [0.3, 0.3]]), ("old", [[0, 0], [0.3, 0.3]])):
        found = targets("replay", second, **{"kl.beta": 0.3, "replay.anchor": anchor})
        np.testing.assert_allclose(found.kl_coef, expected, rtol=1e-6)
        np.testing.assert_allclose(found.advantages, GROUP, rtol=1e-5)


def test_controls_of_an_anchor_on_old_prompts_are_matched_to_these(batch):
    """The new prompt's samples have no β: what a control makes of those would be none of RP."""
    batch = changed(batch, replayed=[False, True], mask=batch.mask.at[0, 0, 1:].set(False))
    kl = (kl_estimate(POLICY, batch.reference_logps, "k3") * batch.mask).sum(-1)
    weights = kl / batch.mask.sum(-1)

    def beta(control, **changes):
        asked = {**RANGE, "replay.anchor": "old", "portability.control": control, **changes}
        return np.asarray(targets("portable_replay", batch, **asked).kl_coef)

    plain = beta("none")
    assert (plain[0] == 0).all() and plain[1, 0] != plain[1, 1]
    np.testing.assert_allclose(beta("matched"), [[0, 0], [plain[1].mean()] * 2], rtol=1e-5)
    strength = beta("strength")
    np.testing.assert_allclose((strength * weights).sum(), (plain * weights).sum(), rtol=1e-5)
    dealt = [beta("shuffled", seed=seed) for seed in range(8)]
    for found in dealt:
        np.testing.assert_allclose(np.sort(found), np.sort(plain), rtol=1e-6)
    assert len({found.tobytes() for found in dealt}) == 2  # another seed deals otherwise


# ---------------------------------------------------------------------- the other papers


def test_mssr_advantages(batch):
    one = {"rollout.samples": 1}
    single = changed(
        batch,
        rewards=[[1.0], [0.0]],
        mask=[[[True, True, True, False]]] * 2,
        demonstrated=[[False]] * 2,
        accuracies=[[1.0], [0.0]],
    )
    logps = jnp.log(jnp.array([[[0.5, 1.0, 0.1, 0.3]]] * 2))

    def advantages(entropies=None, **changes):
        return method("mssr", **one, **changes).targets(single, logps, entropies).advantages

    # 1 − ¼ and 0 − ½; mean 1/8, half their distance 5/8: whitened to ±1
    np.testing.assert_allclose(advantages(**{"mssr.shaping": "none"}), [[1.0], [-1.0]], rtol=1e-5)
    raw = {"mssr.shaping": "none", "mssr.whitening": False}
    np.testing.assert_allclose(advantages(**raw), [[0.75], [-0.5]])
    h = [0.4 * -p * np.log(p) for p in (0.5, 1.0, 0.1)]
    np.testing.assert_allclose(
        advantages(), [[[*(1 + np.array(h)), 0]], [[*(-1 + np.array(h)), 0]]], rtol=1e-5
    )
    full = advantages(jnp.full((2, 1, 4), 2.0), **{"mssr.shaping": "full"})
    np.testing.assert_allclose(full, [[[1.5, 1.5, 1.5, 0]], [[-0.5, -0.5, -0.5, 0]]], rtol=1e-5)
    assert method("mssr", **one, **{"mssr.shaping": "full"}).entropies
    assert method("mssr", **one).loss.keywords["dual_clip"] == 3.0
    with pytest.raises(ValueError, match=r"rollout\.samples is 8, expected 1"):
        method("mssr")


def test_mssr_tracker():
    tracker = method("mssr", **{"rollout.samples": 1}).tracker
    state = tracker.start(np.array([0.5, 0.5, 1.0], np.float32))
    np.testing.assert_allclose(tracker.baselines(state, np.array([0, 2])), [0.5, 1.0])
    # no KL known yet: ρ = 0.875; 4 → 3.5 + 1 and 4 → 3.5
    state = tracker.observe(state, np.array([0]), np.array([1.2]), None)
    np.testing.assert_allclose(tracker.baselines(state, np.arange(3)), [4.5 / 8, 0.5, 1.0])
    # KL half of its target: ρ = 0.9175
    after = tracker.observe(state, np.array([1]), np.array([0.2]), 0.005)
    np.testing.assert_allclose(
        tracker.baselines(after, np.arange(3)), [4.5 / 8, 4 * 0.9175 / (8 * 0.9175 + 1), 1.0]
    )
    # the window's mean counts: 0.005 and 0.031 are above the target together
    after = tracker.observe(after, np.array([2]), np.array([0.0]), 0.031)
    np.testing.assert_allclose(tracker.baselines(after, np.array([2])), [7 / 8])
    # of a window of two, the first of three has left
    tracker = method("mssr", **{"rollout.samples": 1, "mssr.window": 2}).tracker
    state = tracker.start(np.array([0.5], np.float32))
    for kl in (9.0, 0.005, 0.007):
        state = tracker.observe(state, np.array([0]), np.array([1.0]), kl)
    np.testing.assert_allclose(state.kls, [0.005, 0.007])


def test_mssr_survey_and_ablations():
    one = {"rollout.samples": 1}
    assert method("mssr", **one, **{"mssr.survey": True}).pretask == "success"
    plain = method("mssr", **one, **{"mssr.tracker": False, "kl.beta": 0.0})
    assert plain.tracker is None and plain.reference is None
    # the tracker needs the KL, even where the loss has none
    assert method("mssr", **one, **{"kl.beta": 0.0}).reference == "previous"


def test_dyme_memorises_explores_and_leaves_alone(batch):
    found = changed(
        batch,
        rewards=[[0.2, 0.1], [1.0, 0.0]],
        accuracies=[[0.0, 0.0], [1.0, 0.0]],
        demonstrated=[[True, False], [False, False]],
    )
    explored = [0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)]
    np.testing.assert_allclose(targets("dyme", found).advantages, [[1, 0], explored], rtol=1e-5)
    right = changed(found, rewards=[[1.0, 0.9], [1.0, 0.0]], accuracies=[[1.0, 1.0], [1.0, 0.0]])
    right = changed(right, demonstrated=[[False, False], [False, False]])
    np.testing.assert_allclose(targets("dyme", right).advantages, [[0, 0], explored], rtol=1e-5)
    only = targets("dyme", found, **{"dyme.explore": False}).advantages
    np.testing.assert_allclose(only, [[1, 0], [0, 0]])
    without = method("dyme", **{"dyme.memorise": False})
    assert without.demonstration is None and not without.memorises and not without.revise
    assert method("dyme").memorises and method("dyme").reference is None


def test_rapo_rewards_staying_near_the_previous_policy(batch):
    chosen = method("rapo", **{"loss.advantage_scale": "none"})
    assert chosen.reference == "base" and chosen.previous
    found = chosen.targets(batch, POLICY, None)
    # mean over all four tokens of log π_old − log π_previous
    drift = [max(0, np.log(0.4 / 0.8) / 4), 2 * np.log(2) / 4]
    bonus = [0.5 * np.exp(-20 * d) for d in drift]
    np.testing.assert_allclose(found.values["retention"], [bonus] * 2, rtol=1e-4)
    first = (1 + bonus[0] - bonus[1]) / 2
    np.testing.assert_allclose(found.advantages[0], [first, -first], rtol=1e-5)


def test_rapo_has_nothing_to_retain_in_the_first_task(batch):
    first = targets("rapo", changed(batch, step=7, task_step=7))
    assert (np.asarray(first.values["retention"]) == 0).all()
    np.testing.assert_allclose(first.advantages, GROUP, rtol=1e-5)


def test_rapo_normalises_across_tasks(batch):
    chosen = method("rapo", **{"rapo.ctan": True, "rapo.momentum": 0.75})
    tracker = chosen.tracker
    assert tracker.carried and method("rapo").tracker is None
    start = tracker.start(np.full(9, 0.5, np.float32))
    # ½√2 and nothing, of two prompts; a reward that does not apply is left out
    prompts, rewards = np.array([3, 3, 5, 5, 5]), np.array([1.0, 0.0, 2.0, 2.0, np.nan])
    # where no prompt's rewards differ, nothing is known of how far they do: 0 would be divided by
    for nothing in (np.zeros(5), np.full(5, np.nan)):
        assert np.isnan(tracker.observe(start, prompts, nothing, None))
    std = tracker.observe(start, prompts, rewards, None)
    np.testing.assert_allclose(std, 0.5**0.5, rtol=1e-6)
    assert tracker.observe(std, prompts, np.zeros(5), None) == std
    after = tracker.observe(std, prompts, 2 * rewards, None)
    np.testing.assert_allclose(after, 1.25 * 0.5**0.5, rtol=1e-6)
    assert tracker.baselines(after, np.array([0, 1])).shape == (2,)
    here = changed(batch, step=7, task_step=7)
    for known, expected in ((np.nan, GROUP[0][0]), (2.0, 0.5 / 2.0001)):
        found = chosen.targets(changed(here, prompt_values=[known] * 2), POLICY, None).advantages
        np.testing.assert_allclose(found, [[expected, -expected], [0, 0]], rtol=1e-5)


def test_lwf_adds_the_previous_policys_responses(batch):
    found = changed(
        batch,
        rewards=[[1.0, jnp.nan], [0.0, jnp.nan]],
        demonstrated=[[False, True], [False, True]],
    )
    chosen = method("lwf", **{"lwf.weight": 0.7})
    assert chosen.previous_responses == 1 and chosen.reference is None
    np.testing.assert_allclose(
        chosen.targets(found, POLICY, None).advantages, [[0, 0.7], [0, 0.7]], rtol=1e-6
    )


def test_what_the_classics_ask_for():
    assert method("joint").data == "joint" and method("replay").data == "replay"
    assert method("ewc").consolidation == 100.0 and method("zero_shot").responses == "none"
    for name in ("joint", "replay", "ewc", "lwf"):
        assert method(name).reference is None
        assert method(name, **{"kl.beta": 0.1}).reference == "previous"
    for name in ("replay", "portable_replay"):
        with pytest.raises(ValueError, match=r"replay.fraction is 1.0, expected .* \(0, 1\)"):
            method(name, **{"replay.fraction": 1.0})
        with pytest.raises(ValueError, match=r"replay\.anchor is 'new'"):
            method(name, **{"replay.anchor": "new"})


# ---------------------------------------------------------------------- given responses


def record(**columns):
    return Record("r1", "t", "what?", (), "7", "exact", columns)


def test_sft_loss_is_the_mean_over_all_tokens():
    mask = jnp.array([[True, True, True], [True, False, False]])
    logps = jnp.array([[-1.0, -2.0, -3.0], [-6.0, jnp.nan, -jnp.inf]])
    terms = negative_log_likelihood(logps, None, None, mask)
    assert terms.loss_sum / terms.normaliser == 3.0


SHOUTED = []


def shout(hint, facts, **columns):
    SHOUTED.append(hint)
    return f"{hint.upper()} ({facts})"


def silent(**columns):
    return ""


def test_demonstrations(tmp_path):
    taught = method("sft").demonstration
    assert method("sft").responses == "demonstrations"
    assert taught(record(response="said")) == "said"
    assert taught(record(hint="add")) == "<think> add </think> <answer> 7 </answer>"
    with pytest.raises(ValueError, match="record 'r1' has neither a `response` nor a `hint`"):
        taught(record())
    refined = method("dyme", **{"demonstrations.refiner": "tests.methods.test_methods:shout"})
    wanted = "<think> ADD (two cups) </think> <answer> 7 </answer>"
    hinted = record(hint="add", facts="two cups")
    asked = importlib.import_module("tests.methods.test_methods").SHOUTED
    asked.clear()
    assert [refined.demonstration(hinted) for _ in range(3)] == [wanted] * 3
    assert refined.demonstration(dataclasses.replace(hinted)) == wanted  # read anew
    assert asked == ["add"]  # a refiner may be a slow model: it is asked once a record
    # it comes before the record's own response, and says on which record it failed
    assert refined.demonstration(record(response="said", hint="add", facts="two cups")) == wanted
    with pytest.raises(FunctionFailed, match=r"TypeError on record 'r1', .* columns \['hint'\]"):
        refined.demonstration(record(hint="add"))
    silent = method("dyme", **{"demonstrations.refiner": "tests.methods.test_methods:silent"})
    with pytest.raises(ValueError, match="returned '' for record 'r1'"):
        silent.demonstration(record(hint="add"))
    answer = {"demonstrations.target": "answer", "demonstrations.no_reasoning": "next"}
    assert method("sft", **answer).demonstration(record()) == (
        "<think> next </think> <answer> 7 </answer>"
    )
    for number, ids in enumerate((["r1", "r2"], ["r1"])):
        rows = {"record_id": ids, "completion": [f"{number}:{i}" for i in ids]}
        pq.write_table(pa.table(rows), tmp_path / f"{number}.parquet")
    of_tasks = {"task": ["a", "b"], "record_id": ["r1"] * 2, "completion": ["a's", "b's"]}
    pq.write_table(pa.table(of_tasks), tmp_path / "2.parquet")
    collected = method("rft_sft", **{"demonstrations.rollouts": str(tmp_path / "*.parquet")})
    assert collected.demonstration(record()) == "0:r1"
    assert [collected.demonstration(dataclasses.replace(record(), task=t)) for t in "ab"] == [
        "a's",
        "b's",
    ]
    assert collected.demonstration(dataclasses.replace(record(), id="r9")) is None
    with pytest.raises(FileNotFoundError, match="rdbcl collect"):
        method("rft_sft", **{"demonstrations.rollouts": str(tmp_path / "none.parquet")})


def test_built_in_tasks_are_taught_by_the_rewarded_procedure():
    made = digits_suite.make_record("sum", "train", 3, 0)
    assert method("sft").demonstration(made) == digits_suite.make_trace(made)


# ---------------------------------------------------------------------- wrong options

RESAMPLE_NOTHING = ("rapo", "replay", "portable_replay", "lwf", "one_shot", "zero_shot", "sft")
RESAMPLE_NOTHING += ("dyme", "pcurl", "shuffle_r1", "reinforce_ada", "gdpo", "sft_rl")


@pytest.mark.parametrize("name", ["grpo", "rdbcl", "joint", "ewc", "vas"])
def test_groups_that_say_nothing_are_replaced_for_whom_it_is_asked(name):
    assert method(name).revise is None
    assert method(name, **{"rollout.resample": 2}).revise is not None


@pytest.mark.parametrize(
    "name,changes,message",
    [
        ("grop", {}, "expected one of"),
        ("rdbcl", {"portability.level": "all"}, "portability.level is 'all'"),
        ("rdbcl", {"portability.kind": "odds"}, "portability.kind is 'odds'"),
        ("rdbcl", {"portability.control": "magic"}, "portability.control is 'magic'"),
        ("rdbcl", {"portability.beta_min": 1.0}, "portability.beta_min is 1.0, above beta_max"),
        (
            "rdbcl",
            {"portability.kind": "static", "portability.level": "answer"},
            "portability.level is 'answer', and kind 'static' is measured of the reasoning",
        ),
        (
            "rdbcl",
            {"portability.control": "accuracy", "portability.verified": True},
            "portability.verified is True, and control 'accuracy'",
        ),
        *[
            (
                name,
                {"kl.portability": True, "portability.kind": "static", **changes},
                f"config.kl.portability is True, .* for {name} expected False or another",
            )
            for name, changes in (("mssr", {"rollout.samples": 1}), ("rapo", {"rapo.ctan": True}))
        ],
        ("dyme", {"dyme.memorise": False, "dyme.explore": False}, "dyme.explore is False beside"),
        ("grpo", {"prompts.filter": "mixed", "prompts.samples": 1}, "prompts.samples is 1, and"),
        ("grpo", {"kl.kind": "k1"}, "kl.kind is 'k1'"),
        ("grpo", {"kl.reference": "first"}, "kl.reference is 'first'"),
        ("grpo", {"loss.surrogate": "trpo"}, "loss.surrogate is 'trpo'"),
        ("mssr", {"rollout.samples": 1, "mssr.shaping": "odd"}, "mssr.shaping is 'odd'"),
        ("sft", {"demonstrations.target": "gold"}, "demonstrations.target is 'gold'"),
        ("dyme", {"demonstrations.refiner": "nowhere:f"}, "cannot import 'nowhere:f'"),
        ("replay", {"rollout.prompts": 1}, "prompts is 1, expected at least 2 for replay: .*"),
        ("portable_replay", {"rollout.prompts": 1}, "prompts is 1, expected at least 2"),
        (
            "sft_rl",
            {"rollout.prompts": 5, "demonstrations.share": 0.1},
            "prompts is 5, expected at least 6 for sft_rl: of fewer, demonstrations.share teaches",
        ),
        ("sft_rl", {"demonstrations.share": 1e-9}, "expected at least 5000000.. for sft_rl"),
        (
            "vas",
            {"rollout.prompts": 1},
            "prompts is 1, expected at least 2 for vas: of fewer, prompts.share draws none",
        ),
        (
            "replay",
            {"rollout.prompts": 2, "prompts.order": "variance"},
            "prompts is 2, expected at least 3 for replay: of fewer, prompts.share draws none",
        ),
        ("sft_rl", {"kl.portability": True}, "config.kl.portability is True, .* for sft_rl"),
        ("grpo", {"kl.floor": 0.1}, "config.kl.floor is 0.1, .* expected another kl.schedule"),
        ("sapo", {"loss.dual_clip": 3.0}, "config.loss.dual_clip is 3.0, of the surrogate 'ppo'"),
        (
            "rapo",
            {"rapo.ctan": True, "loss.advantage_scale": "none"},
            "config.loss.advantage_scale is 'none', and config.rapo.ctan divides",
        ),
        ("dapo", {"kl.schedule": "rise"}, "config.kl.schedule is 'rise', and dapo has no KL"),
        ("dr_grpo", {"kl.schedule": "rise"}, "config.kl.schedule is 'rise'"),
        ("ewc", {"kl.schedule": "rise"}, "config.kl.schedule is 'rise'"),
        ("shuffle_r1", {"kl.schedule": "rise"}, "config.kl.schedule is 'rise'"),
        *[
            (name, {"rollout.resample": 2}, f"config.rollout.resample is 2, which {name} does not")
            for name in RESAMPLE_NOTHING
        ],
        *[
            (
                name,
                {"loss.advantage_scale": "leave_one_out"},
                f"config.loss.advantage_scale is 'leave_one_out', which {name} does not",
            )
            for name in ("dyme", "shuffle_r1", "reinforce_ada", "gdpo", "sft", "zero_shot")
        ],
        (
            "mssr",
            {"loss.advantage_scale": "none", "rollout.samples": 1},
            "config.loss.advantage_scale is 'none', which mssr does not read",
        ),
    ],
)
def test_wrong_options_are_refused_before_anything_compiles(name, changes, message):
    with pytest.raises(ValueError, match=message):
        method(name, **changes)


def test_a_share_of_a_batch_that_comes_to_a_prompt_stands():
    assert method("sft_rl", **{"rollout.prompts": 6, "demonstrations.share": 0.1})
    assert method("sft_rl", **{"rollout.prompts": 1, "demonstrations.share": 0.0})
    assert method("sft_rl", **{"rollout.prompts": 1, "demonstrations.mixture": "interleaved"})
    assert method("vas", **{"rollout.prompts": 2}) and method("replay", **{"rollout.prompts": 2})
    assert method("replay", **{"rollout.prompts": 3, "prompts.order": "variance"})


def test_every_method_stands_in_a_dry_run():
    for name in METHODS.keys() - {"rft_sft"}:
        config = default_config()
        config.method, config.rollout.samples = name, 1 if name == "mssr" else 8
        asked = RunConfig.of(config)
        small, _ = dry(asked, make_method(asked))
        assert make_method(small).name == name and small.training.steps == 2
        assert small.rollout.prompts <= 2 * jax.device_count() and small.rollout.samples <= 4
        assert small.rollout.max_tokens == 16
        asked = asked.changed({"rollout.max_tokens": 5})  # which it does not raise
        assert dry(asked, make_method(asked))[0].rollout.max_tokens == 5


def test_every_method_has_a_json_config():
    for name in METHODS.keys() - {"rft_sft"}:
        config = default_config()
        config.method, config.rollout.samples = name, 1 if name == "mssr" else 8
        assert make_method(config).name == name
        json.dumps(config.to_dict())
