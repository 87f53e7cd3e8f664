import contextlib
import errno
import re
import shutil
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax import checkpoint
from rdbcl_jax.checkpoint import Checkpoints, Damaged
from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods import make_method
from rdbcl_jax.sharding import ParamAxes, make_mesh, param_shardings
from rdbcl_jax.training.disk import parts_of
from rdbcl_jax.training.optimizer import make_optimizer
from rdbcl_jax.training.state import TrainState
from tests import engine


def make_state(name="adamw"):
    config = engine.small_config().optimizer
    config.name = name
    key = jax.random.key(0)
    params = {"layers": {"q_proj": {"kernel": jax.random.normal(key, (2, 16, 16))}}}
    params["norm"] = {"scale": jnp.ones(16, jnp.bfloat16)}
    return TrainState.create(params, make_optimizer(config, 10))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_round_trip_is_exact_and_only_the_latest_steps_stay(tmp_path, name):
    state = make_state(name)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == []
    for step in (3, 7, 12):
        checkpoints.save_step(step, jax.tree.map(jnp.zeros_like, state) if step < 12 else state)
    checkpoints.wait()
    assert checkpoints.steps() == [7, 12] and not checkpoints.strays()
    kept = {p.stem for p in (tmp_path / "checkpoints/manifests").iterdir()}
    assert kept == {"step_00000007", "step_00000012"}
    restored = Checkpoints(tmp_path).restore_step(12, jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert all(
        a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (restored, state)), strict=True)
    )


def test_restores_onto_another_mesh(tmp_path):
    params = make_state().params
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_task(1, params)
    shardings = param_shardings(
        params,
        ParamAxes((("q_proj/kernel$", ("embed", "heads")),), ("layers",)),
        make_mesh(2, 2, 2),
    )
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, shardings
    )
    restored = checkpoints.restore_task(1, like)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert (
        restored["layers"]["q_proj"]["kernel"].sharding == shardings["layers"]["q_proj"]["kernel"]
    )


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a flipped bit": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_step(1, make_state())
    return folder


def test_what_may_pass_is_no_damage(saved, tmp_path, monkeypatch):
    """A state that is taken for damaged is given up, and later ones removed."""
    shutil.copytree(saved, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")

    def stale(file):
        raise OSError(errno.ESTALE, "Stale file handle", str(file))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Stale file handle"):
        patch.setattr("rdbcl_jax.checkpoint.read_manifest", stale)
        checkpoints.problem("step_00000001")

    def no_room(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"^RESOURCE_EXHAUSTED"):
        patch.setattr("rdbcl_jax.checkpoint.ocp.load", no_room)
        checkpoints.restore_step(1, make_state())
    assert checkpoints.problem("step_00000001") == ""


@pytest.mark.parametrize("how", DAMAGE)
def test_whatever_file_is_damaged_is_named(saved, tmp_path, how):
    """Every file that holds something, of arrays and of metadata."""
    files = [p for p in saved.rglob("step_*/**/*") if p.is_file() and p.stat().st_size]
    assert len(files) > 5
    for i, file in enumerate(files):
        workdir = tmp_path / str(i)
        shutil.copytree(saved, workdir)
        DAMAGE[how](workdir / file.relative_to(saved))
        with pytest.raises(Damaged, match=re.escape(file.name)) as error:
            Checkpoints(workdir).restore_step(1, make_state())
        assert "\n" not in str(error.value) and "step_00000001" in str(error.value)


def test_a_state_without_a_manifest_was_never_finished(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    checkpoints = Checkpoints(tmp_path)
    (checkpoints.directory / "step_00000099").mkdir()
    assert checkpoints.steps() == [1, 99]
    assert "has no manifest" in checkpoints.problem("step_00000099")
    flip(checkpoints.directory / "manifests/step_00000001.json")
    assert checkpoints.problem("step_00000001")
    shutil.rmtree(checkpoints.directory / "step_00000001")
    assert checkpoints.steps() == [1, 99]  # its manifest tells that it was there
    assert Checkpoints(tmp_path).problem("step_00000001")


def test_states_from_before_there_were_manifests_are_read_as_they_are(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    checkpoints = Checkpoints(tmp_path)
    shutil.rmtree(checkpoints.directory / "manifests")
    assert checkpoints.unverified and not checkpoints.problem("step_00000001")
    checkpoints.restore_step(1, make_state())
    checkpoints.adopt()
    assert not checkpoints.unverified and not Checkpoints(tmp_path).problem("step_00000001")
    shutil.rmtree(checkpoints.directory / "manifests")
    for file in checkpoints.directory.rglob("_*METADATA"):
        file.unlink()
    with pytest.raises(Damaged, match="cannot be read") as error:  # and not a trace of orbax
        checkpoints.restore_step(1, make_state())
    assert "\n" not in str(error.value)


def test_without_hashes_sizes_are_compared(tmp_path):
    checkpoints = Checkpoints(tmp_path, verify=False)
    checkpoints.save_task(1, make_state().params)
    checkpoints.wait()
    (file,) = (p for p in checkpoints.directory.glob("task_01/state/d/*"))
    flip(file)
    assert not Checkpoints(tmp_path, verify=False).problem("task_01")
    DAMAGE["truncated"](file)
    assert file.name in Checkpoints(tmp_path, verify=False).problem("task_01")


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(tmp_path, monkeypatch):
    """The error that orbax raises there, at its call; `tests.reliability` fills a real one."""
    checkpoints, state = Checkpoints(tmp_path), make_state()
    checkpoints.save_step(1, state)
    checkpoints.wait()

    def full(path, *args, **kwargs):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rdbcl_jax.checkpoint.ocp.save_async", full)
        with pytest.raises(OSError, match="No space left on device, while saving") as error:
            checkpoints.save_step(2, state)
    assert "step_00000002" in str(error.value)
    assert checkpoints.steps() == [1] and checkpoints.strays() == ["step_00000002"]
    assert {p.name for p in checkpoints.directory.iterdir()} == {"step_00000001", "manifests"}

    def late(path, *args, **kwargs):
        raise TimeoutError("no answer from the storage")  # which has no errno

    with monkeypatch.context() as patch:
        patch.setattr("rdbcl_jax.checkpoint.ocp.save_async", late)
        with pytest.raises(OSError, match="no answer from the storage, while saving: '"):
            checkpoints.save_step(2, state)
    checkpoints.save_step(2, state)
    checkpoints.wait()
    assert not checkpoints.problem("step_00000002") and not checkpoints.strays()


@contextlib.contextmanager
def slow_disk(monkeypatch):
    """No manifest is written before the block is left, as if that took so long."""
    let, write = threading.Event(), Checkpoints._write_manifest

    def wait_and_write(self, name):
        assert let.wait(60)
        write(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_write_manifest", wait_and_write)
        try:
            yield
        finally:
            let.set()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_state_counts_when_it_is_whole_and_only_then_are_older_ones_removed(
    tmp_path, monkeypatch, keep
):
    """And what is trained on meanwhile, in the place of what is saved, is another matter."""
    checkpoints, update = Checkpoints(tmp_path, keep=keep), jax.jit(double, donate_argnums=0)
    states = [{"a": jnp.full(100_000, 1.0)}]
    for step in range(1, keep + 1):
        checkpoints.save_step(step, states[0])
    checkpoints.wait()
    with slow_disk(monkeypatch):
        expected = jax.tree.map(lambda a: np.array(a + 1), states[0])
        state = jax.tree.map(lambda a: a + 1, states[0])
        checkpoints.save_step(9, state)
        for _ in range(5):
            state = update(state)
        jax.block_until_ready(state)
        killed = Checkpoints(tmp_path, keep=keep)  # what a run that goes on would find
        assert killed.problem("step_00000009") == "was never finished"
        assert killed.steps() == [*range(1, keep + 1)] and "step_00000009" in killed.strays()
        jax.tree.map(np.testing.assert_array_equal, killed.restore_step(keep, state), states[0])
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 9][-keep:] and not checkpoints.strays()
    found = Checkpoints(tmp_path).restore_step(9, state)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's
def test_little_is_written_at_a_time_and_one_array_at_least(tmp_path, monkeypatch):
    """What orbax has in hand lies in memory beside the state: all of it would be a copy more."""
    state = {"large": jnp.arange(50_000.0), "small": jnp.ones(3)}
    part, limits = checkpoint._how_written, []

    def spy(tree):
        context = part(tree)
        limits.append(context.memory.write_concurrent_bytes)
        return context

    monkeypatch.setattr(checkpoint, "_how_written", spy)
    for at_once in (checkpoint._AT_ONCE, 1):
        monkeypatch.setattr(checkpoint, "_AT_ONCE", at_once)
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save_task(1, state)
            found = checkpoints.restore_task(1, state)
        np.testing.assert_array_equal(found["large"], state["large"])
    assert limits == [2**29, 2 * 4 * 50_000]
    # it is heard: what does not fit is refused
    monkeypatch.setattr(checkpoint, "_how_written", lambda tree: part({"small": jnp.ones(3)}))
    with pytest.raises(Exception, match="more bytes than we reserved"):
        Checkpoints(tmp_path, background=False).save_task(2, state)


def test_as_many_states_are_planned_for_as_lie_there_at_once(tmp_path, monkeypatch):
    """Those of a task stay until later ones are whole, of whatever task."""
    config = engine.small_config()
    config.update_from_flattened_dict({"training.steps": 20, "training.checkpoint_every": 10})
    config.sequence = ("sum", "walk", "jigsaw")
    config, learner = RunConfig.of(config), types.SimpleNamespace(like=make_state())
    states, *_ = parts_of(config, make_method(config), learner, {}, done=0, there=0)
    lie, write = [], Checkpoints._write_manifest

    def count_and_write(self, name):
        lie.append(len([*self.directory.glob("step_*")]))
        write(self, name)

    monkeypatch.setattr(Checkpoints, "_write_manifest", count_and_write)
    with Checkpoints(tmp_path, **config.checkpoint.to_dict()) as checkpoints:
        for step in (10, 30, 50):
            checkpoints.save_step(step, make_state())
    assert states.count == max(lie) == 3


def double(tree):
    return jax.tree.map(lambda a: 2 * a, tree)


def test_a_write_that_fails_behind_the_step_is_an_error_of_the_run(tmp_path, monkeypatch):
    """Whatever else ends it, but for an error of its own."""

    def fail(self, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write_manifest", fail)
    for error, raised in ((None, OSError), (KeyboardInterrupt(), OSError), (KeyError(), KeyError)):
        with pytest.raises(raised) as found, Checkpoints(tmp_path) as checkpoints:
            checkpoints.save_task(1, make_state().params)
            if error:
                raise error
        lines = str(found.value), *getattr(found.value, "__notes__", ())
        assert "while saving: '" in "".join(lines) and "task_01" in "".join(lines)
        assert not Checkpoints(tmp_path).tasks()


def test_copies_beside_the_states_are_no_strays(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    ours = ["step_00000002.orbax-checkpoint-tmp-17", "step_9", "task_1"]
    theirs = ["task_01.bak", "task_01 (copy)", "before-lunch", ".DS_Store"]
    for name in [*ours, *theirs, "task_01"]:
        (checkpoints.directory / name).mkdir(parents=True)
    assert checkpoints.strays() == sorted(ours)


def test_another_structure_is_one_clear_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_step(1, make_state("adamw"))
    with pytest.raises(ValueError, match="another model or optimizer") as error:
        checkpoints.restore_step(1, make_state("muon"))
    assert "mu/layers/q_proj/kernel" in str(error.value)
