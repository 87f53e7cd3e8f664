"""Recipes and the chips that they are for, and what `rdbcl plan` says of them: the tables of
docs/scaling.md.

    python -m tests.plans [NAME …]      compiled; minutes each; libtpu is needed, no TPU
    python -m tests.plans scale         computed: 3B to 72B on 8 to 4,096 chips
"""

from __future__ import annotations

import dataclasses
import sys
import time

from ml_collections import ConfigDict

from rdbcl_jax.config import RunConfig
from rdbcl_jax.planning.arithmetic import Traced, UnknownDevice, computed_plan, products_of
from rdbcl_jax.planning.chips import GIB, TPUS, Topology, topology_of
from rdbcl_jax.planning.inputs import planned
from rdbcl_jax.planning.make import make_plan
from rdbcl_jax.planning.plan import Plan
from rdbcl_jax.recipes import load_config
from rdbcl_jax.training.footprint import Footprint, Sizes
from rdbcl_jax.training.layout import with_layout

RECIPES = (
    ("rdbcl_smolvlm_256m", "v5e:1x1"),
    ("rdbcl_qwen2_5_vl_3b:lora", "v6e:1x1"),
    ("rdbcl_qwen2_5_vl_3b:lora", "gpu:h100x1"),
    ("rdbcl_qwen2_5_vl_3b", "v5e:4x4"),
    ("rdbcl_qwen2_5_vl_3b", "v5p:2x2x1"),
    ("rdbcl_qwen2_5_vl_7b", "v5e:4x8"),
    ("rdbcl_qwen2_5_vl_7b", "v5p:2x2x4"),
    ("rdbcl_qwen2_5_vl_7b", "gpu:h100x8"),
    ("rdbcl_qwen2_5_vl_32b", "v5p:4x4x8"),
)
COUNTS = (8, 16, 64, 256, 1024, 4096)


def loaded(recipe: str) -> ConfigDict:
    """NAME or NAME:FORM, as `--config` has it."""
    name, _, form = recipe.partition(":")
    return load_config(name, *([form] if form else []))


def config_of(recipe: str) -> RunConfig:
    return RunConfig.of(loaded(recipe))


def laid_out(recipe: str, topology: str) -> tuple[Footprint, int]:
    """What the recipe holds on a chip by arithmetic, on the mesh that is chosen there, and how much
    memory that has. The compiler is not asked, nor does it have to be there."""
    kind, _, shape = topology.partition(":")
    count, chip = 1, TPUS[kind]
    for side in shape.split("x"):
        count *= int(side)
    with planned(config_of(recipe)) as (config, _):
        devices = UnknownDevice.some(count)
        config = with_layout(config, devices, chip.memory, True)
        mesh = {"data": count, "fsdp": 1, "tensor": 1} | {
            axis: size for axis, size in config.mesh.to_dict().items() if size > 0
        }
        return Sizes.of(config).on(mesh, memory=chip.memory), chip.memory


def least_sampled(recipe: str, plan: Plan) -> int:
    """Bytes that a chip's sampler cannot do without: weights and filled caches at every token."""
    with planned(config_of(recipe)) as (config, _):
        config = config.changed({f"mesh.{axis}": size for axis, size in plan.mesh.items()})
        step = computed_plan(config, topology_of(plan.topology)).step
    return next(phase.memory for phase in step if phase.name == "sampling")


def made_once(recipe: str) -> float:
    """The share of an update's products that is not made anew for the backward pass."""
    with planned(config_of(recipe)) as (config, _):
        anew, once = (
            products_of(config.changed({"model.remat": remat}))["update"]
            for remat in (config.model.remat, "none")
        )
    return once / anew


def row(recipe: str, plan: Plan, seconds: float) -> str:
    mesh = " × ".join(str(plan.mesh[axis]) for axis in ("data", "fsdp", "tensor"))
    peaks = {phase.name: f"{phase.peak / GIB:.1f}" for phase in plan.phases}
    order = ("boundary", "sampling", "reference", "update", "evaluation")
    assert plan.chip
    step = sum(phase.seconds(plan.chip) for phase in plan.step)
    sampling, *_, update = plan.step
    cells = (
        f"`{recipe}`",
        f"`{plan.topology}`",
        mesh,
        plan.microbatches,
        *(peaks.get(name, "") for name in order),
        f"{plan.limit / GIB:.1f}",
        "yes" if plan.fits else "no",
        f"{step:.1f}",
        f"{plan.tokens / step / plan.chips:,.0f}",
        f"{sampling.memory / least_sampled(recipe, plan):.2f}",
        f"{update.share(plan.chip) * made_once(recipe):.0%}",
        f"{seconds:,.0f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def scale() -> None:
    """A batch of two prompts a chip, at least 64."""
    print("| | chip | chips | mesh | micro-batches | GiB | step, s | tokens/s a chip | bound by |")
    print("|---|---|---:|---|---:|---:|---:|---:|---|")
    for model in ("3B", "7B", "32B", "72B"):
        name = {"model.path": f"/models/Qwen2.5-VL-{model}"}
        with planned(config_of("rdbcl_qwen2_5_vl_7b").changed(name)) as (config, _):
            traced = Traced.of(config)
            for kind in ("v5e", "v5p"):
                for count in COUNTS:
                    print(_scaled(model, config, traced, kind, count), flush=True)


def _scaled(model: str, config: RunConfig, traced: Traced, kind: str, count: int) -> str:
    prompts = max(64, 2 * count)
    sizes = {"rollout.prompts": prompts, "evaluation.batch_size": prompts}
    config, chip, devices = config.changed(sizes), TPUS[kind], UnknownDevice.some(count)
    known = dataclasses.replace(traced.sizes, config=config)
    config = with_layout(config, devices, chip.memory, True, known)
    topology = Topology(f"{kind} × {count}", chip, count, None)
    plan = computed_plan(config, topology, traced=traced)
    step = sum(phase.seconds(chip) for phase in plan.step)
    mesh = " × ".join(str(plan.mesh[axis]) for axis in ("data", "fsdp", "tensor"))
    bound = ", ".join(f"{phase.name} {phase.bound(chip)}" for phase in plan.step)
    head = f"| {model} | {kind} | {count:,} | {mesh} | {plan.microbatches}"
    if plan.peak > 0.9 * plan.limit:  # an estimate
        return f"{head} | {plan.peak / GIB:.1f}: does not fit | | | |"
    rate = plan.tokens / step / count
    return f"{head} | {plan.peak / GIB:.1f} | {step:.1f} | {rate:,.0f} | {bound} |"


def main(names: list[str]) -> None:
    if names == ["scale"]:
        scale()
        return
    for recipe, topology in RECIPES:
        if names and recipe not in names and topology not in names:
            continue
        start = time.perf_counter()
        plan = make_plan(config_of(recipe), topology_of(topology))
        print(row(recipe, plan, time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
