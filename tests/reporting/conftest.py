"""A synthetic workdir: what a run of five tasks would leave, made of seeded random numbers."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.results import RunResults, SplitResults

TASKS = ["sum", "walk", "alternate", "horner", "jigsaw"]
WORDS = ["the", "digit", "at", "cell", "plus", "so", "state", "moves", "to", "is", "wait", "then"]


@pytest.fixture
def make_workdir(tmp_path):
    """make_workdir(name, seed=0, …) → path of a synthetic workdir."""

    def make(name="run", **options):
        return write_workdir(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def full_workdir(tmp_path_factory):
    """One larger workdir, to read only."""
    return write_workdir(tmp_path_factory.mktemp("full") / "run", steps=30, samples=16)


def write_workdir(
    workdir,
    *,
    method="rdbcl",
    seed=0,
    rows=6,
    steps=60,
    samples=32,
    portability=True,
    examples=4,
    gain=0.0,
    config=(),
    tasks=TASKS,
):
    """Write all files of a run; `rows` of the accuracy matrix are reached (6 = all)."""
    rng = np.random.default_rng(seed)
    tasks = list(tasks)
    log = RunLog(workdir)
    for k, task in enumerate(tasks[: rows - 1]):
        for i in range(steps):
            step = k * steps + i
            row, table = one_step(rng, step, task, k, i, steps, samples, portability)
            log.write_step(row)
            log.write_samples(table)
        log.write_examples(one_example(rng, step, task, portability) for _ in range(examples))
    log.write_results(results(rng, method, seed, tasks, rows, gain, dict(config)))
    log.close()
    return workdir


def one_step(rng, step, task, k, i, steps, samples, portability):
    t = i / steps
    skill = 0.35 + 0.6 / (1 + np.exp(-8 * (t - 0.4)))
    right = rng.random(samples) < skill
    formatted = rng.random(samples) < 0.93 + 0.06 * t
    reward = right + 0.2 * formatted
    rp = np.exp(-(t**0.7) * rng.gamma(2.0, 0.12 + 0.04 * k, samples))
    kl_coef = 0.02 + 0.18 / (1 + np.exp(-(rp - rp.mean()) / max(rp.std(), 0.02)))
    kl = np.abs(rng.normal(0.25 * t, 0.02 + 0.08 * t, samples)) * (i > 0)
    length = rng.integers(14, 30, samples) - int(6 * t)
    row = {
        "step": step,
        "task": task,
        "task_index": k,
        "task_step": i,
        "reward": reward.mean(),
        "reward_std": reward.std(),
        "frac_reward_zero_std": rng.beta(2 + 6 * t, 6),
        "rewards/accuracy/mean": right.mean(),
        "rewards/format/mean": formatted.mean(),
        "accuracy": right.mean(),
        "parse_rate": formatted.mean(),
        "kl": kl.mean(),
        "entropy": 0.9 * np.exp(-1.5 * t) + rng.normal(0, 0.02),
        "policy_loss": rng.normal(0, 0.004),
        "kl_loss": 0.1 * kl.mean(),
        "clip_ratio/low_mean": rng.beta(1, 90),
        "clip_ratio/high_mean": rng.beta(1, 60),
        "completions/mean_length": length.mean(),
        "completions/min_length": length.min(),
        "completions/max_length": length.max(),
        "completions/clipped_ratio": rng.beta(1, 60),
        "num_tokens": (step + 1) * 1500,
        "step_time": rng.normal(0.5, 0.02) + 8 * (step == 0),
        "grad_norm": rng.gamma(4, 0.1) if i != 7 else np.nan,
        "learning_rate": 1e-4 * min(1, (i + 1) / 10),
        "sampler/logp_difference/max": rng.gamma(2, 1e-5),
    }
    table = {
        "step": step,
        "task": task,
        "record_id": rng.integers(0, 5000, samples),
        "prompt": [f"<image>\n{task}: what is the result?"] * samples,
        "completion": [f"<think>{' '.join(rng.choice(WORDS, 8))}</think><answer>3</answer>"]
        * samples,
        "gold": ["3"] * samples,
        "reward": reward,
        "rewards/accuracy": right.astype(float),
        "rewards/format": 0.2 * formatted,
        "accuracy": right.astype(float),
        "parsed": formatted,
        "advantage": (reward - reward.mean()) / (reward.std() + 1e-4),
        "kl": kl,
        "length": length,
        "finished": rng.random(samples) < 0.98,
    }
    if i % 10 == 9:
        row[f"eval/{task}/accuracy"] = skill + rng.normal(0, 0.02)
    if portability:
        row |= {"rp/mean": rp.mean(), "rp/std": rp.std()}
        row |= {"kl_coef/mean": kl_coef.mean(), "kl_coef/std": kl_coef.std()}
        table |= {"rp": rp, "kl_coef": kl_coef}
    return row, table


def one_example(rng, step, task, portability):
    reasoning = list(rng.choice(WORDS, rng.integers(9, 22)))
    answer = str(rng.integers(0, 10))
    tokens = ["<think>", *(f" {w}" for w in reasoning), "</think>", "<answer>", answer, "</answer>"]
    spans = ["other", *["reasoning"] * len(reasoning), "other", "other", "answer", "other"]
    policy = -rng.gamma(1.0, 0.3, len(tokens))
    drift = rng.normal(-0.25, 0.5, len(tokens)) * (rng.random(len(tokens)) < 0.5)
    right = bool(rng.random() < 0.7)
    return {
        "task": task,
        "step": step,
        "record_id": int(rng.integers(0, 5000)),
        "image": picture(rng),
        "prompt": f"{task}: start at {rng.integers(0, 10)}, read row by row & give the result.",
        "tokens": [*tokens, "<|im_end|>"],
        "policy_logps": [*policy, -0.001],
        "reference_logps": [*(policy + drift), -0.002],
        "spans": [*spans, "other"],
        "reward": 1.2 if right else 0.2,
        "gold": answer if right else str((int(answer) + 1) % 10),
        "rp": float(np.exp(drift[1:-4].mean())) if portability else None,
        "kl_coef": float(rng.uniform(0.02, 0.2)) if portability else None,
        "correct": right,
    }


def picture(rng):
    """A base64 PNG of six noisy digits in two rows."""
    from sklearn.datasets import load_digits

    cells = load_digits().images[rng.integers(0, 1797, 6)].repeat(2, 1).repeat(2, 2) * 15
    cells = np.clip(cells + rng.normal(0, 12, cells.shape), 0, 255)
    sheet = np.concatenate([np.concatenate(list(cells[i : i + 3]), 1) for i in (0, 3)], 0)
    buffer = io.BytesIO()
    Image.fromarray(sheet.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def results(rng, method, seed, tasks, rows, gain, config):
    T = len(tasks)
    base = np.random.default_rng(seed).uniform(0.3, 0.5, T)  # one base model per seed
    rng = np.random.default_rng([seed, *method.encode()])
    matrix = np.empty((T + 1, T))
    for i in range(T + 1):
        for j in range(T):
            age = i - 1 - j
            learned = 0.93 + gain / 4 - (0.09 - gain) * max(age, 0) if age >= 0 else base[j] + 0.02
            matrix[i, j] = np.clip((base[j] if i == 0 else learned) + rng.normal(0, 0.015), 0, 1)
    matrix[rows:] = np.nan
    parse = np.where(np.isfinite(matrix), np.clip(rng.normal(0.985, 0.01, matrix.shape), 0, 1), 0)
    split = SplitResults(
        accuracy=matrix,
        parse_rate=np.where(np.isfinite(matrix), parse, np.nan),
        metrics=metrics(matrix),
        count=[384] * T,
    )
    return RunResults(
        method=method,
        seed=seed,
        tasks=tasks,
        splits={"test": split, "validation": dataclasses.replace(split, accuracy=matrix - 0.01)},
        config={"method": method, "seed": seed, "learning_rate": 1e-4, "group_size": 8} | config,
        versions={"python": "3.11.9", "jax": "0.10.2", "rdbcl_jax": "0.1.0"},
        timing={"base": 95.2, "sampling": 60.1, "update": 48.8, "evaluation": 21.0},
        device="cpu (4 cores)",
        status="done" if rows == T + 1 else "running",
    )


def metrics(a):
    """The usual summaries, written again here on purpose; NaN while the matrix is not full."""
    T = a.shape[1]
    diagonal = np.array([a[j + 1, j] for j in range(T)])
    best = np.array([a[j + 1 : T, j].max(initial=-1) for j in range(T - 1)])
    return {
        "last": a[T].mean(),
        "avg_seen": np.mean([a[i, :i].mean() for i in range(1, T + 1)]),
        "avg_all": a[1:].mean(),
        "bwt": (a[T] - diagonal)[:-1].mean(),
        "bwt_over_t": (a[T] - diagonal)[:-1].sum() / T,
        "forgetting_first": (diagonal - a[T])[:-1].mean(),
        "forgetting_max": (best - a[T, :-1]).mean(),
        "transfer": np.mean([a[i, j] for j in range(1, T) for i in range(1, j + 1)]),
        "mft": diagonal.mean(),
        "fwt_zeroshot": np.mean([a[j, j] - a[0, j] for j in range(1, T)]),
    }
