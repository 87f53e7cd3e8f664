"""`rdbcl plan`: what is counted, against what is known; what is compiled, where libtpu is."""

import dataclasses
import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods import make_method
from rdbcl_jax.planning import chips, compiling
from rdbcl_jax.planning.chips import topology_of
from rdbcl_jax.planning.compiling import PROCESS
from rdbcl_jax.planning.flops import flops
from rdbcl_jax.planning.make import make_plan
from rdbcl_jax.planning.published import published
from rdbcl_jax.planning.table import lines
from rdbcl_jax.planning.traffic import Compiled
from rdbcl_jax.recipes import load_config, recipes
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.toy.tiny import write_tiny_model
from rdbcl_jax.training import layout
from rdbcl_jax.training.footprint import FISHER, LEARN, MOMENTS, PREVIOUS, WRITTEN
from rdbcl_jax.training.microbatches import microbatches, prompts_at_once
from rdbcl_jax.training.programs import Programs, live, surveys
from tests import engine, plans

A, B, W = jnp.ones((3, 4)), jnp.ones((4, 5)), jnp.ones((7, 4, 4))
ONE = 2 * 3 * 4 * 5  # A · B


def counted(function, *args, mean=False):
    return flops(jax.make_jaxpr(function)(*args), mean)


def test_products_count_as_often_as_they_run():
    def scanned(x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, W)[0]

    def until(x):
        state = jax.lax.while_loop(lambda s: s[0] < 6, lambda s: (s[0] + 1, s[1] @ W[0]), (2, x))
        # the second goes on where the first ended
        return jax.lax.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + 1, s[1] @ W[0]), state)

    def by_blocks(
        x,
    ):  # as the sampler: a loop in a loop, of the same counter, and the rest after it
        less = lambda s: s[0] < 9  # noqa: E731
        block = lambda s: jax.lax.while_loop(lambda t: less(t) & (t[1] > 0).any(), turn, s)  # noqa: E731
        turn = lambda s: (s[0] + 1, s[1] @ W[0])  # noqa: E731
        state = jax.lax.while_loop(less, block, (jnp.int32(1), x))
        return jax.lax.while_loop(less, block, state)

    layer = 2 * 3 * 4 * 4
    assert counted(by_blocks, A) == (8 + 1) * layer
    assert counted(jnp.matmul, A, B) == ONE
    assert counted(scanned, A) == 7 * layer
    assert counted(jax.jit(until), A) == (4 + 3) * layer
    assert counted(jax.grad(lambda x: scanned(x).sum()), A) == 2 * 7 * layer
    remat = jax.grad(lambda x: jnp.sin(jax.checkpoint(scanned)(x)).sum())
    assert counted(remat, A) == 2 * 7 * layer  # a product need not be made again for its own input
    cond = jax.make_jaxpr(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ B, lambda: x @ B * 0))
    assert flops(cond(A)) == ONE
    either = jax.make_jaxpr(
        lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ B, lambda: x[:, :1] @ B[:1])
    )
    assert flops(either(A)) == ONE and flops(either(A), mean=True) == (ONE + ONE // 4) // 2
    image, kernel = jnp.ones((1, 3, 8, 8)), jnp.ones((5, 3, 2, 2))
    conv = lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID")  # noqa: E731
    assert counted(conv, image, kernel) == 2 * 5 * 4 * 4 * 3 * 2 * 2


HLO = """\
HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%cut (stack: bf16[30,8,16], at: s32[]) -> bf16[8,16] {
  %stack = bf16[30,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,8,16]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero)
  ROOT %layer = bf16[8,16]{1,0} bitcast(%slice)
}

%body (state: (s32[], bf16[30,8,16], f32[8,16])) -> (s32[], bf16[30,8,16], f32[8,16]) {
  %state = (s32[], bf16[30,8,16], f32[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack.1 = bf16[30,8,16] get-tuple-element(%state), index=1
  %acc = f32[8,16] get-tuple-element(%state), index=2
  %layer.1 = bf16[8,16]{1,0:T(8,128)S(1)} fusion(%stack.1, %i), kind=kLoop, calls=%cut
  %reduced = f32[8,16] all-reduce(%acc), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %next = (s32[], bf16[30,8,16], f32[8,16]) tuple(%i, %stack.1, %reduced)
}

%condition (state.1: (s32[], bf16[30,8,16], f32[8,16])) -> pred[] {
  %state.1 = (s32[], bf16[30,8,16], f32[8,16]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(30)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (w: bf16[30,8,16], a: f32[8,16]) -> f32[8,16] {
  %w = bf16[30,8,16] parameter(0)
  %a = f32[8,16] parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], bf16[30,8,16], f32[8,16]) tuple(%start, %w, %a)
  %loop = (s32[], bf16[30,8,16], f32[8,16]) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8,16] get-tuple-element(%loop), index=2
}
"""


def test_bytes_are_those_of_every_turn_of_a_loop():
    """A slice of a stack is read, and where it is; fast memory is free; a sum of four chips sends ¾
    of it twice."""
    found, layer, acc = Compiled.of(HLO).traffic(), 8 * 16 * 2, 8 * 16 * 4
    assert found.memory == 30 * (layer + 4 + 2 * acc)
    assert found.links == 30 * (2 * acc * 3 // 4)
    assert [b.shape for b in Compiled.of(HLO).buffers(3)] == ["f32[8,16]", "bf16[8,16]"]
    # the same groups as later versions write them
    for groups in ("mesh['a'=2,'b'=4] {'b'}", "mesh['a'=8] {'a':(1)4}", "{{0,1,2,3},{4,5,6,7}}"):
        assert Compiled.of(HLO.replace("[2,4]<=[8]", groups)).traffic() == found


def test_what_chips_receive_is_read_in_this_versions_text():
    mesh = make_mesh(data=2, fsdp=4, devices=jax.devices()[:8])
    rows = jax.ShapeDtypeStruct((8, 64), "float32", sharding=NamedSharding(mesh, P("fsdp")))
    summed = jax.jit(lambda a: a.sum(0), out_shardings=NamedSharding(mesh, P()))
    moved = Compiled.of(summed.lower(rows).compile().as_text()).traffic()
    assert moved.links == 2 * 64 * 4 * 3 // 4  # all-reduce over the four of `fsdp`


def received(config, mesh, name):
    """Bytes that each of eight CPU devices receives, by the text of a compiled program."""
    programs = Programs.of(config, make_mesh(*mesh, devices=jax.devices()[:8]))
    (program,) = (p for p in programs.of_a_step() if p.name == name)
    return Compiled.of(program.lowered().compile().as_text()).traffic().links


BESIDE = """\
HloModule jit_h, is_scheduled=true

%begun (own: bf16[64,16]) -> (bf16[64,16], bf16[64,128]) {
  %own = bf16[64,16] parameter(0)
  %all.1 = bf16[64,128] all-gather(%own), channel_id=1, replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %start = (bf16[64,16], bf16[64,128]) custom-call(%all.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (own.1: bf16[64,16], x: f32[4]) -> (f32[4], bf16[64,128]) {
  %own.1 = bf16[64,16] parameter(0)
  %x = f32[4] parameter(1)
  %y = f32[4] add(%x, %x)
  %all.2 = bf16[64,128] all-gather(%own.1), channel_id=1, replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %on = (f32[4], bf16[64,128]) tuple(%y, %all.2)
}

%ended (own.2: bf16[64,16]) -> bf16[64,128] {
  %own.2 = bf16[64,16] parameter(0)
  %all.3 = bf16[64,128] all-gather(%own.2), channel_id=1, replica_groups=[1,8]<=[8], dimensions={1}
  ROOT %done = bf16[64,128] custom-call(%all.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: bf16[64,16], v: f32[4]) -> bf16[64,128] {
  %w = bf16[64,16] parameter(0)
  %v = f32[4] parameter(1)
  %first = (bf16[64,16], bf16[64,128]) fusion(%w), kind=kCustom, calls=%begun
  %then = (f32[4], bf16[64,128]) fusion(%w, %v), kind=kCustom, calls=%async_collective_fusion.2
  ROOT %last = bf16[64,128] fusion(%w), kind=kCustom, calls=%ended
}
"""


def test_a_collective_that_goes_on_beside_other_work_is_received_once():
    """As XLA writes it for TPUs."""
    assert Compiled.of(BESIDE).traffic().links == 7 * 64 * 16 * 2


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_an_update_receives_what_it_is_said_to(tmp_path, mesh, rank):
    """Two micro-batches at least. XLA on CPU sums gradients over `fsdp` for all where others leave
    each its part; with `tensor` it gathers for what is made anew and for the backward pass apart,
    at most. The tolerance is a frozen tower and a head, read forward alone, and activations.

    Prompts and responses pass a layer together: read apart, they had it gathered, and its gradient
    summed, twice."""
    size = dataclasses.replace(engine.SIZE, width=256, mlp_width=512, heads=8, kv_heads=8)
    given = {"model.path": str(write_tiny_model(tmp_path, size)), "model.lora.rank": rank}
    given |= {"model.remat": "full", "model.freeze_vision": True, "training.chunk_size": 1024}
    given |= {"rollout.prompts": 16, "rollout.samples": 2, "rollout.max_tokens": 8}
    given |= {"evaluation.batch_size": 16, "training.prompts_per_device": 1}
    given |= {f"mesh.{axis}": n for axis, n in zip(("data", "fsdp", "tensor"), mesh, strict=True)}
    config = config_of(**given)
    plan = make_plan(config, topology_of("gpu:h100x8"))
    (said,) = (phase.links for phase in plan.phases if phase.name == "update")
    _, fsdp, tensor = mesh
    part = plan.microbatches * 4 * (fsdp - 1) / fsdp / tensor
    on_cpu = part * plan.trained
    anew = part * plan.parameters if fsdp > 1 and tensor > 1 else 0
    found = received(config, mesh, "update")
    assert plan.microbatches > 1
    assert 0.95 * said < found < 1.03 * (said + on_cpu + anew)


def test_over_fsdp_weights_travel_and_rows_stay(path):
    """A kernel of attention sees to it; without one XLA split activations by width, as embeddings
    are, and gave every device all rows: 21 times the bytes of this model's weights."""
    sizes = {"rollout.prompts": 16, "rollout.samples": 2, "rollout.max_tokens": 8}
    config = config_of(**{"model.path": str(path), "evaluation.batch_size": 16, **sizes})
    weights = 4 * make_plan(config, topology_of("gpu:h100x8")).parameters
    assert 0.5 * weights < received(config, (1, 8, 1), "reference") < 1.5 * weights


@pytest.mark.parametrize(
    "said,held,program",
    [
        # with its arguments, which are held; a model among them is no array
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 3.00K of 2.00K hbm.",
            0,
            3,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory on HBM, the "
            "total memory required for HLO temporaries (3.00K) exceeds available HBM (2.00K).",
            1,
            3,
        ),
    ],
)
def test_a_program_that_does_not_fit_is_a_phase_that_does_not(said, held, program):
    def compiled():
        raise jax.errors.JaxRuntimeError(said)

    args = ("a model", jax.ShapeDtypeStruct((256,), "float32"))
    lowered = types.SimpleNamespace(compile=compiled)
    asked = types.SimpleNamespace(name="sampling", args=args, made=0, lowered=lambda: lowered)
    phase = compiling._phase(asked, 1024, tpu=True)
    assert (phase.held, phase.program) == (held * 1024, program * 1024)


BRANCHES = """\
HloModule jit_g, is_scheduled=true

%shaped (whole: bf16[64,16]) -> bf16[64,16] {
  %whole = bf16[64,16] parameter(0)
  ROOT %same = bf16[64,16] bitcast(%whole)
}

%product (head: bf16[64,16], x: bf16[4,16]) -> f32[4,64] {
  %x = bf16[4,16] parameter(1)
  %head = bf16[64,16] parameter(0)
  %inner = bf16[64,16] fusion(%head), kind=kLoop, calls=%shaped
  ROOT %logits = f32[4,64] convolution(%x, %inner), dim_labels=bf_oi->bf
}

%read (block: bf16[64,16]) -> bf16[64,16] {
  %block = bf16[64,16] parameter(0)
  ROOT %copied = bf16[64,16] copy(%block)
}

%nothing (block.1: bf16[64,16]) -> bf16[64,16] {
  ROOT %block.1 = bf16[64,16] parameter(0)
}

ENTRY %main (h: bf16[64,16], v: bf16[4,16], where: s32[]) -> (f32[4,64], bf16[64,16]) {
  %h = bf16[64,16] parameter(0)
  %v = bf16[4,16] parameter(1)
  %where = s32[] parameter(2)
  %first = f32[4,64] fusion(%h, %v), kind=kOutput, calls=%product
  %cond = bf16[64,16] conditional(%where, %h, %h), branch_computations={%read, %nothing}
  ROOT %both = (f32[4,64], bf16[64,16]) tuple(%first, %cond)
}
"""


def test_what_fusions_within_fusions_read_is_counted_and_of_branches_the_mean():
    found, matrix = Compiled.of(BRANCHES), 64 * 16 * 2
    product = matrix + 4 * 16 * 2 + 4 * 64 * 4
    assert found.traffic().memory == product + 2 * matrix
    assert found.traffic(mean=True).memory == product + matrix


@pytest.mark.parametrize(
    "name, message",
    [
        ("v5e", "did you mean 'v5e:2x4'"),
        ("v5p", "did you mean 'v5p:2x2x4'"),
        ("gpu:h100", "did you mean 'gpu:h100x8'"),
        ("h200", "did you mean 'gpu:h200x8'"),
        ("pod", "expected one such as v4:2x2x4, v5e:2x4, v5p:2x2x4, v6e:2x4, gpu:a100x8, "),
    ],
)
def test_unknown_chips(name, message):
    with pytest.raises(ValueError, match=message):
        topology_of(name)


def test_without_the_compiler(monkeypatch):
    """A slice that is none is said whether the compiler is there or not."""
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    for name in (
        "v5e:2x4",
        "v5e:1x1",
        "v6e:16x16",
        "v4:2x2x1",
        "v5p:2x2x3",
        "v5p:1x1x1",
        "v5p:2x2",
    ):
        with pytest.raises(ImportError, match=r"pip install 'jax\[tpu\]'"):
            topology_of(name)
    two, three = "no slice of TPU v5e: expected two sides", "no slice of TPU v5p: expected three"
    for name in ("v5e:3x3", "v5e:1x2", "v5e:0x4", "v5e:2x2x2", "v5e:32x32"):
        with pytest.raises(ValueError, match=two):
            topology_of(name)
    for name in ("v5p:1x2x1", "v5p:3x4x4", "v5p:2x2x0", "v5p:16x32x32"):
        with pytest.raises(ValueError, match=three):
            topology_of(name)


@pytest.mark.tpu
@pytest.mark.parametrize("name, size", [("v4:2x2x1", 4), ("v5p:2x2", 4), ("v6e:2x4", 8)])
def test_a_chip_is_one_device(name, size):
    assert topology_of(name).size == size


# ------------------------------------------------------------------ what is chosen


def config_of(**changes):
    config = engine.small_config()
    config.update_from_flattened_dict(changes)
    return RunConfig.of(config)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return engine.write_random_model(tmp_path_factory.mktemp("model"))


def test_micro_batches_follow_from_what_a_device_takes():
    mesh = {"data": 2, "fsdp": 2, "tensor": 1}
    for most, at_once, parts in ((0, 6, 1), (1, 1, 6), (4, 3, 2), (6, 6, 1), (99, 6, 1)):
        config = config_of(**{"rollout.prompts": 24, "training.prompts_per_device": most})
        assert (prompts_at_once(config, mesh), microbatches(config, mesh)) == (at_once, parts)


def test_the_layout_is_the_cheapest_that_fits(path):
    config = config_of(**{"model.path": str(path), "rollout.prompts": 32})
    devices, sizes = jax.devices(), layout.Sizes.of(config)
    assert layout.with_layout(config, devices, None, True) is config  # no limit is known

    def chosen(memory):
        found = layout.with_layout(config, devices, memory, True, sizes)
        return found.mesh.fsdp, found.training.prompts_per_device

    def needs(fsdp, at_once):
        mesh = {"data": 8 // fsdp, "fsdp": fsdp, "tensor": 1}
        return math.ceil(sizes.on(mesh, at_once).most(True) / 0.9)

    learn = "parameters that learn"
    whole, split = (sizes.on({"data": 1, "fsdp": n, "tensor": 1}).held[learn] for n in (1, 4))
    assert whole / 4 < split < whole / 3  # norms are whole
    assert chosen(needs(1, 4)) == (1, 4)
    assert chosen(needs(1, 4) - 100) == (1, 2)
    assert chosen(needs(2, 1)) == (2, 1)
    assert chosen(1) == (8, 1)  # nothing fits: as little as can be
    config = config.changed({"mesh.data": 4, "mesh.fsdp": 2})
    assert chosen(1) == (2, 1)  # a mesh that is given stays


def test_layers_are_split_where_prompts_are_too_few():
    config = config_of(**{"rollout.prompts": 4, "evaluation.batch_size": 4, "base.batch_size": 8})
    found = layout.with_layout(config, jax.devices(), None, True)
    assert (found.mesh.data, found.mesh.tensor) == (4, 2)


# ------------------------------------------------------------------ plans


def test_a_plan_for_this_machine(path):
    config = config_of(**{"model.path": str(path), "rollout.max_tokens": 4, "model.lora.rank": 2})
    one = topology_of("cpu")._replace(size=1, devices=jax.devices()[:1])
    plan = make_plan(config, one)
    names = [phase.name for phase in plan.phases]
    assert names == ["boundary", "sampling", "reference", "update", "evaluation"]
    assert plan.fits and all(phase.program for phase in plan.phases[1:])
    assert plan.held[WRITTEN] == plan.held[LEARN]  # the policy after a task, while it is saved
    assert plan.phases[0].peak == sum(plan.held.values())
    assert all(phase.held > plan.held[PROCESS] > 2**27 for phase in plan.phases)
    assert all(phase.flops and phase.memory for phase in plan.phases[1:])
    assert json.loads(json.dumps(plan.to_dict()))["peak"] == plan.peak
    small = dataclasses.replace(plan, limit=plan.peak - 1)
    text = [*lines(small)]
    assert any("does not fit" in line for line in text) and max(map(len, text)) <= 100
    assert {"lies there", "runs in", "peak", "compiled in", *names} <= explained(text)
    held = plan.phases[0].peak
    for limit, over in ((held, names[1:]), (held - 1, ["boundary"])):
        advice = [*dataclasses.replace(plan, limit=limit).advice()]
        assert [line.partition(":")[0] for line in advice] == over


def test_what_is_asked_between_steps_is_counted(path):
    """Evaluation, Fisher information and surveys run batches of `evaluation.batch_size`, with what
    is held then beside them."""
    chip, tokens = topology_of("gpu:h100x1"), {"rollout.max_tokens": 4}
    given = {"model.path": str(path), "method": "ewc", "rollout.prompts": 2, **tokens}
    config = config_of(**given, **{"evaluation.batch_size": 64, "evaluation.every": 0})
    plan = make_plan(config, chip)
    phases, held = {phase.name: phase for phase in plan.phases}, plan.held
    assert list(phases) == ["boundary", "sampling", "update", "evaluation", "fisher"]
    everything = sum(held.values())
    assert phases["evaluation"].program > phases["sampling"].program
    assert phases["evaluation"].held == everything - held[MOMENTS] - held[PREVIOUS]
    assert phases["fisher"].held == everything - held[MOMENTS] + held[FISHER]
    assert phases["fisher"].program > held[FISHER] and phases["fisher"].flops > 0
    assert {"evaluation", "fisher"} <= explained(lines(plan))

    def held_in(name, **changes):
        method = make_method(config.changed(changes))
        return live(name, held, config.changed(changes), method)

    assert held_in("evaluation", **{"evaluation.every": 2}) == everything
    assert held_in("evaluation", **{"method": "rdbcl", "portability.kind": "static"}) == everything
    collecting = config.changed({"training.collect": 8})
    assert surveys(collecting, make_method(collecting)) == 8
    few = collecting.changed({"evaluation.batch_size": 1, "rollout.samples": 8})
    assert surveys(few, make_method(few)) == 0  # a step samples as many
    assert held_in("survey", **{"training.collect": 8}) == everything - held[MOMENTS]


def explained(text):
    """Words that the legend of a printed plan has."""
    text = [*text]
    rows = text[text.index("what the words mean") + 1 :]
    return {row[2:22].strip() for row in rows[: rows.index("")] if row[22:].strip()}


def test_the_model_of_every_recipe_is_known_by_its_name():
    paths = {name: load_config(name).model.path for name in recipes() if "/" not in name}
    named = {name: published(path) for name, path in paths.items() if path}
    assert all(named.values()) and len(named) >= 6, named


@pytest.mark.parametrize(
    ("repository", "model"),
    [
        ("HuggingFaceTB/SmolVLM-256M-Instruct", "SmolVLM-256M"),
        ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "SmolVLM-256M"),
        ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "SmolVLM-500M"),
        ("HuggingFaceTB/SmolVLM-Instruct", "SmolVLM-2.2B"),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLM-2.2B"),
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "LLaVA-OneVision-0.5B"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", ""),
        ("OpenGVLab/InternVL3-1B-hf", "InternVL3-1B"),
        ("google/gemma-3-4b-it", "Gemma-3-4B"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "Qwen2.5-VL-72B"),
    ],
)
def test_published_models_are_known_by_the_names_of_their_repositories(repository, model):
    assert published(repository) == model


def test_a_plan_for_gpus_needs_no_model():
    config = RunConfig.of(load_config("rdbcl_qwen2_5_vl_3b", "lora"))
    plan = make_plan(config, topology_of("gpu:h100x1"))
    assert plan.parameters - plan.trained == 3_754_622_976 and plan.fits
    assert any("Qwen2.5-VL-3B as published" in line for line in plan.assumed)
    assert {"TFLOP", "GB moved", "GB received", "seconds", "bound by"} <= explained(lines(plan))
    sampling, reference, update = plan.step
    # an H200 took 8.9 GiB beside what lies there
    assert 8 * 2**30 < reference.program < update.program
    assert sampling.bound(plan.chip) == "memory" and update.bound(plan.chip) == "products"
    # twice the parameters for each token of the forward pass; it is run again, and then backward
    # for what leads to an adapter
    assert 2.5 < update.flops / sampling.flops < 4
    with pytest.raises(FileNotFoundError, match=r"expected a directory with config\.json"):
        make_plan(config_of(**{"model.path": "/nowhere/other"}), topology_of("gpu:h100x1"))


@pytest.mark.parametrize("number", [3, 6, 8])
def test_recipes_fit_by_arithmetic(number):
    """`python -m tests.plans` asks the compiler."""
    recipe, topology = plans.RECIPES[number]
    found, memory = plans.laid_out(recipe, topology)
    assert found.most(True) <= 0.9 * memory


@pytest.mark.tpu
def test_a_tpus_program_needs_what_its_heap_comes_to():
    """Gradients that are summed over parts: the sum and one part's. XLA's temporaries would be 3
    copies, which it does not allocate."""
    depth, width = 8, 2048
    size = depth * width * width * 4
    (device,) = topology_of("v5e:1x1").devices
    whole = jax.sharding.SingleDeviceSharding(device)

    def loss(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ w.astype(jnp.bfloat16)), None

        return jax.lax.scan(jax.checkpoint(layer), x, weights)[0].astype(jnp.float32).sum()

    @functools.partial(jax.jit, donate_argnums=0)
    def update(weights, parts):
        def add(total, x):
            return total + jax.grad(loss)(weights, x), None

        total = jax.lax.scan(add, jnp.zeros_like(weights), parts)[0]
        return weights - total / jnp.linalg.norm(total)

    weights = jax.ShapeDtypeStruct((depth, width, width), jnp.float32, sharding=whole)
    parts = jax.ShapeDtypeStruct((4, 8, width), jnp.bfloat16, sharding=whole)
    stats = update.lower(weights, parts).compile().memory_analysis()
    assert 1.9 * size < compiling.needed(stats, tpu=True) < 2.8 * size
    assert compiling.needed(stats, tpu=False) > compiling.needed(stats, tpu=True)


@pytest.mark.tpu
def test_programs_are_compiled_for_tpus(path):
    """Sampler, head and the kernels of attention, at the smallest sizes that the kernels take."""
    config = config_of(
        **{
            "model.path": str(path),
            "rollout.prompts": 2,
            "rollout.samples": 2,
            "rollout.max_tokens": 2,
            "evaluation.batch_size": 2,
        }
    )
    plan = make_plan(config, topology_of("v5e:1x1"))
    assert plan.chip == chips.TPUS["v5e"] and plan.fits
    assert all(phase.seconds(plan.chip) > 0 for phase in plan.phases[1:])
