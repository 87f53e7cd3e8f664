"""What a step runs is compiled beside the base's evaluation, as the step will call it."""

import functools
import threading

import jax
import pytest

from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.training.ahead import Ahead
from rdbcl_jax.training.run import train
from tests import engine

COMPILED = "/jax/core/compile/backend_compile_duration"
STEP = ["sample", "compiled_logprobs", "update"]
RUNS: dict[str, tuple[dict, list[str]]] = {  # and the programs of their steps
    "one device, several sizes": (
        {"data.prompt_lengths": (20, 24), "data.patch_slots": ()},
        STEP,
    ),
    "tensor": ({"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}, STEP),
    "adapters, read in 16 bits": ({"model.lora.rank": 4, "model.dtype": "bfloat16"}, STEP),
    "micro-batches, no reference": (
        {"method": "dapo", "training.prompts_per_device": 1, "rollout.prompts": 16},
        ["sample", "update"],
    ),
    "demonstrations": ({"method": "sft"}, ["update"]),
}
LONG = tuple(RUNS)[1:]  # like the first, and 20 s each


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(engine.write_random_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def compiled():
    """(program, whether in the main thread) of each that XLA compiles or that was kept."""
    seen = []

    def listen(event, duration, fun_name="", **_):
        name = fun_name.removeprefix("jit(").removesuffix(")")
        if event == COMPILED and name in STEP:
            seen.append((name, threading.current_thread() is threading.main_thread()))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in RUNS]
)
def test_what_a_step_runs_is_compiled_once_and_beside_the_evaluation(
    run, model, tmp_path, compiled, monkeypatch
):
    if run.startswith("one device"):
        first = functools.partial(make_mesh, devices=jax.devices()[:1])
        monkeypatch.setattr("rdbcl_jax.training.setup.make_mesh", first)
    config, (changes, programs) = engine.small_config(), RUNS[run]
    config.model.path, config.training.steps = model, 2
    config.update_from_flattened_dict(changes)
    jax.clear_caches()  # other tests have called the same programs
    result = train(config, tmp_path)
    assert result.status == "done"
    assert sorted(name for name, here in compiled if not here) == sorted(programs)
    # the sampler of evaluations; what no step calls and the examples of a task do
    others = {"sample", "compiled_logprobs"} - {*programs} | {"sample"}
    assert sorted(name for name, here in compiled if here) == sorted(others)


def test_what_cannot_be_compiled_fails_where_it_is_called():
    ahead = Ahead()
    ahead.begin("update", lambda: 1 / 0)
    ahead.wait("update")
    ahead.wait("update")  # nothing is waited for twice
    ahead.close()
