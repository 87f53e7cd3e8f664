"""What a run does with each fault, in seconds; the long form: `python -m tests.reliability.trials`.

One run goes through; what it left in its second task is copied. Each fault is done to such a copy;
then it is seen where the run would go on and what it says, or that it goes on to the same
bits.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import pytest
from PIL import Image

from rdbcl_jax import lock
from rdbcl_jax.checkpoint import UNFINISHED, Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.tasks import TaskData
from rdbcl_jax.lock import FILE, Held, WorkdirLock, check_free, is_held
from rdbcl_jax.remote import at, files_below, opened
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.training import identity, setup
from rdbcl_jax.training.resume import find_start
from rdbcl_jax.training.run import train
from rdbcl_jax.training.setup import prepare
from rdbcl_jax.training.stop import Stopped
from rdbcl_jax.workdir import _parts, place
from tests.cloud import bucket, upload
from tests.engine import write_random_model
from tests.reliability import faults
from tests.test_distributed import start_joined
from tests.tiny_runs import tiny_config

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
STEPS, CUT = 3, 4  # of a task; the step that was logged last: states after 2, 3 (task_01), 4


@contextlib.contextmanager
def at_step(step, happens):
    """Something happens when a run has logged a step."""
    write_step = RunLog.write_step

    def write(self, row):
        write_step(self, row)
        if row["step"] == step:
            happens()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write_step", write)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def config(base):
    changes = {"training.checkpoint_every": 1, "evaluation.every": 0}
    return tiny_config(base, "mssr", **changes, **{"rollout.samples": 1})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, config):
    """A run that nothing happened to, and what it left when it had logged a step: what it would
    have left, had it been killed there."""
    folder = tmp_path_factory.mktemp("runs")
    saved_first = RunConfig.of(config).changed({"checkpoint.background": False})
    with at_step(CUT, lambda: faults.copied(folder / "whole", folder / "cut")):
        train(saved_first, folder / "whole")
    return folder


@pytest.fixture(scope="module")
def whole(runs):
    """The one that nothing happened to, and what it computed."""
    return runs / "whole", faults.trace(runs / "whole")


@pytest.fixture
def cut(runs, tmp_path):
    return faults.copied(runs / "cut", tmp_path / "run")


def start_of(config, workdir):
    """Where a run would go on: what `train` asks before it makes anything."""
    return find_start(workdir, prepare(RunConfig.of(config)), Checkpoints(workdir))


def goes_on(config, workdir, whole, *, but=()):
    train(config, workdir)
    differing = faults.differing(whole[1], faults.trace(workdir))
    assert [name for name in differing if name not in but] == []


# ------------------------------------------------------------------------------ corrupt


@pytest.mark.parametrize("how", faults.HOW)
def test_a_damaged_newest_state_is_named_and_the_one_before_is_taken(config, cut, how):
    faults.HOW[how](faults.biggest(cut / "checkpoints/step_00000004"))
    start = start_of(config, cut)
    assert start.done == 3 and start.read == ("task_01",)
    (note,) = start.notes
    assert note.startswith("checkpoints/step_00000004 state/")
    faults.HOW[how](faults.biggest(cut / "checkpoints/task_01"))
    start = start_of(config, cut)
    assert start.done == 2 and "checkpoints/task_01 state/" in start.notes[-1]
    faults.HOW[how](faults.biggest(cut / "checkpoints/step_00000002"))
    with pytest.raises(ValueError, match="no saved state is whole"):
        start_of(config, cut)


REMOVED = {
    "the manifest": ("checkpoints/manifests/step_00000004.json", "has no manifest"),
    "the directory": ("checkpoints/step_00000004", "is not there"),
    "metadata": ("checkpoints/step_00000004/_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA is not"),
    "metadata of arrays": ("checkpoints/step_00000004/state/_METADATA", "_METADATA is not there"),
}


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("what", REMOVED)
def test_a_removed_part_of_the_newest_state_is_noticed(config, cut, what):
    name, problem = REMOVED[what]
    remove(cut / name)
    start = start_of(config, cut)
    assert start.done == 3 and len(start.notes) == 1 and problem in start.notes[0]


# what was being saved, steps that were logged by then, and where the run goes on
CUT_SHORT = [("step_00000004", 5, 3), ("task_01", 4, 2), ("step_00000001", 2, 0)]


@pytest.mark.parametrize("name,logged,done", CUT_SHORT)
def test_a_state_whose_save_was_cut_short_is_none(config, cut, name, logged, done):
    """Its manifest still says so; what orbax has written of it may be there, or not yet."""
    checkpoints, at = Checkpoints(cut), {"task_01": 3}.get(name) or int(name[-1])
    later = [f"step_{step:08}" for step in checkpoints.steps() if step > at]
    checkpoints.drop([*later, *(["task_01"] if at < 3 else [])])
    (cut / f"checkpoints/manifests/{name}.json").write_text(json.dumps(UNFINISHED))
    (cut / f"checkpoints/{name}.orbax-checkpoint-tmp").mkdir()
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:logged]))
    start = start_of(config, cut)
    assert start.done == done
    assert start.notes == (f"checkpoints/{name} is no finished state: it is left out, and removed",)


def test_a_newest_state_that_is_gone_without_a_trace_is_told_by_the_log(config, cut):
    remove(cut / "checkpoints/step_00000004")
    remove(cut / "checkpoints/manifests/step_00000004.json")
    start = start_of(config, cut)
    assert start.done == 3 and "a state after step 4 was saved: it is gone" in start.notes[0]


def test_results_of_another_run_are_found_again(config, cut):
    assert start_of(config, cut).results
    faults.rewrite(cut / "results.json", lambda held: held["config"].update(seed=1))
    start = start_of(config, cut)
    assert not start.results and "results.json is of another run (seed: 1 in" in start.notes[-1]


OTHER_MANIFESTS = ('{"files": 5}', '{"files": {"a": 3}}', '{"files": {"a": ["x", "y"]}}')
NO_RUN = (
    "{}",
    '{"config": {}, "data": 3}',
    '{"config": {"training": 5}}',
    '{"config": {"training": {"steps": "4"}}}',
    '{"config": {"sequence": 5}}',
    '{"config": {}, "base": {"config.json": 3}}',
    '{"config": {}, "code": {"version": "0.1.0"}}',
)


def test_json_of_ours_that_holds_something_else(cut):
    """Is damage like any other: that state is no state, that run no run."""
    manifest = cut / "checkpoints/manifests/step_00000004.json"
    for content in (*faults.NO_OBJECTS.values(), *OTHER_MANIFESTS):
        faults.put(manifest, content)
        problem = Checkpoints(cut).problem("step_00000004")
        assert problem == "has a damaged manifest, manifests/step_00000004.json"
    for content in (*faults.NO_OBJECTS.values(), *NO_RUN):
        faults.put(cut / "run.json", content)
        with pytest.raises((ValueError, OSError), match=r"run\.json"):
            identity.read_identity(cut)


def test_strays_are_named_and_then_removed_and_the_run_ends_in_the_same_bits(
    config, cut, whole, capsys
):
    """Two states are damaged, so that the first task is learned again from its second step."""
    (cut / "checkpoints/step_99").mkdir()
    (cut / "checkpoints/step_00000099").mkdir()
    (cut / "checkpoints/step_00000005.orbax-checkpoint-tmp").mkdir()
    (cut / "samples/part-00000004.tmp").write_bytes(b"of a write that was cut short")
    faults.flip(faults.biggest(cut / "checkpoints/step_00000004"))
    faults.flip(faults.biggest(cut / "checkpoints/task_01"))
    goes_on(config, cut, whole)
    said = capsys.readouterr().out
    assert "step_99 is no finished state" in said and "step_00000099 is no finished" in said
    assert "resuming after step 2 of 6" in said
    left = {path.name for path in (cut / "checkpoints").iterdir()}
    assert left == {"manifests", "task_01", "task_02", "step_00000004", "step_00000005"}


def test_lost_logs_are_named_and_lost_results_are_found_again(config, cut, whole, capsys):
    (cut / "results.json").write_text('{"splits": {')
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:1] + lines[3:4]))
    faults.flip(next((cut / "samples").glob("*-sum.parquet")), 4000)
    goes_on(config, cut, whole, but=("steps", "samples", "files"))
    said = capsys.readouterr().out
    assert "results.json is not there, or damaged: its rows are evaluated again" in said
    assert "metrics.jsonl lacks the rows of steps 1–2" in said
    assert "samples/00000000-sum.parquet cannot be read" in said
    assert "samples/ lacks the rows of steps 0–2" in said


# ------------------------------------------------------------------------------ what a run is


def edited(name, value):
    def change(config, workdir):
        config.update_from_flattened_dict({name: value})

    return change


def without(*names):
    def change(config, workdir):
        for name in names:
            remove(workdir / name)

    return change


def of_another_version(config, workdir):
    faults.rewrite(workdir / "run.json", lambda held: held["code"].update(version="0.0.9"))


REFUSED = {
    "optimizer.learning_rate: 0.001 in the workdir, 0.5 now": edited(
        "optimizer.learning_rate", 0.5
    ),
    "training.steps: 3 in the workdir, 2 now": edited("training.steps", 2),
    "a longer run goes another way": edited("training.steps", 5),
    "records of sum/train: 64 records": edited("data.train_count", 63),
    "rdbcl_jax: 0.0.9 in the workdir": of_another_version,
    "neither run.json nor results.json": without("run.json", "results.json"),
    "holds the log of 5 steps, but no saved state": without("checkpoints"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_another_run_is_refused_with_what_differs(config, cut, line):
    config = config.copy_and_resolve_references()
    if "another way" in line:  # the states from within the first task are gone
        Checkpoints(cut).drop(["step_00000002"])
    REFUSED[line](config, cut)
    before = sorted(p.relative_to(cut) for p in cut.rglob("*") if p.name != FILE)
    with pytest.raises(ValueError) as error:
        train(config, cut)
    assert line in str(error.value)
    assert sorted(p.relative_to(cut) for p in cut.rglob("*") if p.name != FILE) == before


def test_finished_results_without_their_states_are_kept(config, whole, tmp_path):
    workdir = faults.copied(whole[0], tmp_path / "run")
    remove(workdir / "checkpoints")
    with pytest.raises(ValueError, match="holds finished results, but no saved state"):
        train(config, workdir)
    with pytest.raises(ValueError, match="holds finished results of another config"):
        train(RunConfig.of(config).changed({"seed": 5}), workdir)


def test_another_model_under_the_same_name_is_refused_and_the_same_elsewhere_is_not(
    config, base, cut, tmp_path
):
    moved = RunConfig.of(config).changed({"model.path": str(tmp_path / "moved")})
    shutil.copytree(base, tmp_path / "moved")
    assert start_of(moved, cut).done == 4
    faults.flip(tmp_path / "moved/model.safetensors", 1)
    with pytest.raises(ValueError, match=r"base model: model\.safetensors is another file"):
        start_of(moved, cut)


def test_an_edited_answer_or_picture_is_another_run(config, cut):
    setup = prepare(RunConfig.of(config))
    record = setup.tasks[0].train[0]
    for changed in (
        dataclasses.replace(record, answer="7"),
        dataclasses.replace(record, images=(Image.new("RGB", record.images[0].size),)),
    ):
        setup.tasks[0].train[0] = changed
        with pytest.raises(ValueError, match="records of sum/train: 64 records"):
            find_start(cut, setup, Checkpoints(cut))


def test_what_leaves_a_run_as_it_is_may_change(config, cut):
    saved = identity.read_identity(cut)
    code = {**saved.code, "sources": "of last week"}
    identity.write_identity(cut, dataclasses.replace(saved, code=code))
    free = {"training.checkpoint_every": 7, "checkpoint.keep": 1, "data.threads": 1}
    start = start_of(RunConfig.of(config).changed(free), cut)
    assert start.done == 4 and len(start.notes) == 1 and "code of rdbcl_jax" in start.notes[0]


def test_a_run_from_before_run_json_goes_on(config, cut):
    """Its config is that of its results, and its states have no manifests."""
    remove(cut / "run.json")
    remove(cut / "checkpoints/manifests")
    start = start_of(config, cut)
    assert start.done == 4 and start.notes == (
        "saved states are from before there were manifests: read without comparing",
    )
    remove(cut / "run.json")
    with pytest.raises(ValueError, match="seed: 0 in the workdir, 5 now"):
        start_of(RunConfig.of(config).changed({"seed": 5}), cut)


def test_a_task_at_the_end_of_the_sequence_continues(config, whole, tmp_path):
    """As if it had been there from the beginning: what was evaluated before is evaluated on it."""
    longer = RunConfig.of(config).changed({"sequence": ("sum", "jigsaw", "walk")})
    train(longer, tmp_path / "longer")
    workdir = faults.copied(whole[0], tmp_path / "run")
    train(longer, workdir)
    assert faults.differing(*map(faults.trace, (tmp_path / "longer", workdir))) == []


def test_more_steps_continue_from_within_the_first_task(config, whole, tmp_path):
    longer = RunConfig.of(config).changed({"sequence": ("sum",), "training.steps": 4})
    train(longer, tmp_path / "longer")
    train(longer.changed({"training.steps": 3}), tmp_path / "run")
    train(longer, tmp_path / "run")
    assert faults.differing(*(faults.trace(tmp_path / name) for name in ("longer", "run"))) == []


# ------------------------------------------------------------------------------ one run


HOLD = """
import pathlib, sys, time
from rdbcl_jax.lock import WorkdirLock
with WorkdirLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_workdir_has_one_run_until_that_is_killed(config, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"belongs to another run: process {owner.pid} on"):
            train(config, tmp_path)
        assert is_held(tmp_path)
        with pytest.raises(Held, match=f"process {owner.pid} on"):
            check_free(tmp_path)
        owner.kill()
        owner.wait()
        assert not is_held(tmp_path)  # though its last sign of life is a moment old
        check_free(tmp_path)
    with WorkdirLock(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_one_of_several_processes_asks_before_it_joins(tmp_path):
    """To join those of a run that goes on ends them: JAX takes it for one of theirs, restarted."""
    command = [sys.executable, "-m", "rdbcl_jax.cli", "train", "--config=quickstart"]
    nobody = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2"}
    with WorkdirLock(tmp_path):
        done = subprocess.run(
            [*command, f"--workdir={tmp_path}", "--distributed"],
            env={**os.environ, **nobody, "JAX_PROCESS_ID": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"{tmp_path} belongs to another run: process {os.getpid()} on" in done.stderr


@pytest.mark.parametrize("split", ["train", "validation", "test", "held out", "taught"])
def test_hosts_that_have_read_other_files_are_told(monkeypatch, split):
    """Whether they share rows or not: each takes its own out of its own list, and a batch more of
    an evaluation would wait for ever."""
    records = digits_suite.make_records("sum", "train", 3, 0)

    def read(of_split="", held=False):
        parts = {s: records[: 2 if s == of_split else 3] for s in ("train", "validation", "test")}
        return TaskData("b" if held else "a", **parts)

    tasks = [read(), read(held=True)]
    others = [read(split), read("test" if split == "held out" else "", held=True)]
    texts = [(records, ["x"])], [(records, ["y" if split == "taught" else "x"])]
    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(setup, "agree", lambda text: said.append(text) or True)
    setup._check_agreement(others, texts[1])  # the other host's, and its own are the same
    theirs = iter(said)
    monkeypatch.setattr(setup, "agree", lambda text: text == next(theirs))
    name = {"held out": "b, test", "taught": "demonstrations"}.get(split, f"a, {split}")
    with pytest.raises(ValueError, match=f"have read different records .*: {name}; expected the"):
        setup._check_agreement(tasks, texts[0])
    assert next(theirs, None) is None  # all that the other host asks is asked here


def test_a_workdirs_path_may_hold_the_mark_of_a_task(tmp_path):
    workdir = tmp_path / "me@lab/run"
    for name, task in ((f"{workdir}", ""), (f"{workdir}@2", "2"), (f"{workdir}@", "?")):
        assert _parts(name) == (workdir, task)


def test_where_a_file_system_has_no_locks_a_sign_of_life_tells_on_one_host_too(
    tmp_path, monkeypatch
):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", lockf)
    host = lock.socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        owner = {"host": host, "pid": living.pid, "since": "just now"}
        (tmp_path / FILE).write_text(json.dumps(owner))
        with pytest.raises(Held, match=f"process {living.pid} on .* last sign of life was 0 s"):
            WorkdirLock(tmp_path).__enter__()
        living.communicate(b"\n")
    with WorkdirLock(tmp_path):  # its process is no more
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_an_owner_on_another_host_is_dead_once_it_gives_no_sign(tmp_path):
    file = tmp_path / FILE
    file.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "yesterday"}))
    with pytest.raises(Held, match="process 7 on elsewhere, since yesterday"):
        WorkdirLock(tmp_path).__enter__()
    assert is_held(tmp_path)
    os.utime(file, (time.time() - 120,) * 2)
    assert not is_held(tmp_path)
    with WorkdirLock(tmp_path):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    for content in ("", "[" * 100_000, "5", '{"pid": 7}'):  # given back, or no lock of ours
        file.write_text(content)
        with WorkdirLock(tmp_path):
            pass


# ------------------------------------------------------------------------------ stop


@pytest.mark.parametrize("signum,code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_within_a_step(config, whole, tmp_path, signum, code):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    config = RunConfig.of(config).changed({"training.checkpoint_every": 0})
    raise_signal = functools.partial(signal.raise_signal, signum)
    with at_step(0 if code else 3, raise_signal), pytest.raises(Stopped) as stopped:
        train(config, tmp_path)
    # the row of a step is logged while the next one is computed
    assert stopped.value.code == code and "which is saved" in str(stopped.value)
    assert Checkpoints(tmp_path).steps()[-1] == (2 if code else 5)
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    goes_on(config, tmp_path, whole)


def test_a_signal_while_it_evaluates_ends_at_once_and_what_saved_nothing_is_replaced(
    config, tmp_path, monkeypatch
):
    def evaluate(*args):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr("rdbcl_jax.training.run.evaluate", evaluate)
    with pytest.raises(Stopped, match="by SIGTERM while it evaluated") as stopped:
        train(config, tmp_path)
    assert stopped.value.code == 0
    assert start_of(config, tmp_path).notes == ()
    other = RunConfig.of(config).changed({"seed": 5})
    assert start_of(other, tmp_path).notes == (
        "an earlier run here had other settings and saved nothing: it is replaced",
    )
    assert identity.read_identity(tmp_path).config["seed"] == 5


BUSY = """
import hashlib, sys
from rdbcl_jax.training import stop
stop.ECHO = float(sys.argv[1])
with stop.Stop():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # as a compilation: no handler can run
"""


@pytest.mark.parametrize("signals", [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM")])
def test_a_second_signal_stops_at_once_whatever_goes_on(signals):
    """But not a SIGTERM that is the first once more, passed on by a launcher."""
    first, second = (getattr(signal, name) for name in signals)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, "0.5"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(first)
        name = "Ctrl-C" if first == signal.SIGINT else "SIGTERM"
        assert process.stderr.readline() == f"stopping after this step ({name} again: at once)\n"
        if first == signal.SIGTERM:
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert process.poll() is None
        process.send_signal(second)
        assert process.wait(30) == 128 + second


@pytest.mark.parametrize("signum,codes", [(signal.SIGTERM, (0, 0)), (signal.SIGINT, (0, 130))])
def test_processes_of_a_run_stop_after_the_same_step(signum, codes):
    """Whichever of them is asked; with JAX's own preemption service."""
    both = start_joined(2, 1, "tests.reliability.stopping")
    with both[0], both[1]:
        assert [_line(process, "started") for process in both] == ["started"] * 2
        time.sleep(0.3)
        both[1].send_signal(signum)
        ends = [_line(process, "stopped after ") for process in both]
        assert ends[0] == ends[1] and 0 < int(ends[0].split()[-1]) < 2999
        assert tuple(process.wait(60) for process in both) == codes


def _line(process, start):
    """What a process says: the first line that starts so."""
    return next(line.strip() for line in process.stdout if line.startswith(start))


# ------------------------------------------------------------------------------ storage


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(config, whole, tmp_path):
    disk = tmp_path / "disk"
    try:
        with faults.small_disk(disk, 1):
            (disk / "somebody's").write_bytes(bytes(600_000))
            with pytest.raises(
                ValueError, match=r"checkpoints to come take up to .* are free; make room"
            ):
                train(config, disk / "run")
            assert not Checkpoints(disk / "run").steps()
            faults.enlarge(disk, 64)
            full = functools.partial(faults.fill, disk / "somebody's")
            with (
                at_step(2, full),
                pytest.raises(OSError, match="No space left on device, while") as error,
            ):
                train(config, disk / "run")
            assert str(disk) in str(error.value) and "\n" not in str(error.value)
            assert Checkpoints(disk / "run").steps()  # it is not from the beginning
            (disk / "somebody's").unlink()
            goes_on(config, disk / "run", whole)
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_run_that_has_nothing_left_to_save_needs_no_room(
    config, cut, whole, tmp_path, monkeypatch
):
    """What is saved already is counted by its number: compressed it may be smaller."""
    full = types.SimpleNamespace(free=0)
    monkeypatch.setattr("rdbcl_jax.training.disk.shutil.disk_usage", lambda path: full)
    done = faults.copied(whole[0], tmp_path / "done")
    goes_on(config, done, whole)
    left = r"1 states of \S+ MB, 1 policies of \S+ MB\), and 0.0 MB of its disk are free"
    with pytest.raises(ValueError, match=left):
        train(config, cut)


def test_a_workdir_that_cannot_be_one_is_refused_before_anything_is_made(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file, expected a directory"):
        train(config, tmp_path / "file")
    for name in ("checkpoints", "samples", "tb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
        with pytest.raises(OSError, match=f"a file, expected a directory: '.*{name}/{name}'"):
            train(config, tmp_path / name)
    disk = tmp_path / "disk"
    try:
        with faults.small_disk(disk, 1):
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            with pytest.raises(OSError, match="Read-only file system") as error:
                train(config, disk / "run")
            assert str(disk / "run") in str(error.value)
    except PermissionError as error:
        pytest.skip(str(error))


def test_identity_is_quick(config, tmp_path):
    setup = prepare(RunConfig.of(config))
    began = time.perf_counter()
    found = identity.identity_of(setup)
    assert time.perf_counter() - began < 5 and {"sum/train", "jigsaw/test"} <= found.data.keys()


def test_a_run_goes_on_on_gs(config, base, cut, whole, tmp_path, monkeypatch):
    """Its workdir, the states in it and its model: what was left on this machine, put there."""
    monkeypatch.setenv("RDBCL_CACHE_DIR", str(tmp_path / "cache"))
    (cut / FILE).unlink()  # whose owner, this process, is alive
    with bucket() as gs:
        workdir, model = upload(cut, f"{gs}/runs/a"), upload(base, f"{gs}/model")
        found = train(RunConfig.of(config).changed({"model.path": model}), workdir)
        assert found.status == "done" and found.config["model"]["path"] == model
        with opened(workdir) as folder:
            there = at(f"{workdir}/checkpoints")
            for name in files_below(there):
                (folder / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "checkpoints" / name).write_bytes((there / name).read_bytes())
            assert faults.differing(whole[1], faults.trace(folder)) == []
            assert (folder / "report.html").exists() and any((folder / "tb").iterdir())
        learned = place(RunConfig.of(found.config), f"{workdir}@1")
        assert (str(learned[1]), learned[2]) == (workdir, 1)
        with pytest.raises(ValueError, match=f"^{workdir} holds 6 steps of another config"):
            train(RunConfig.of(config).changed({"seed": 5}), workdir)
