"""gs://: workdir, model and data, through the real clients on an emulator of Cloud Storage."""

import json
import os
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rdbcl_jax import lock, remote
from rdbcl_jax.checkpoint import Checkpoints, Damaged
from rdbcl_jax.data.pictures import decode
from rdbcl_jax.data.preparing import prepare
from rdbcl_jax.data.published import DATA_SETS
from rdbcl_jax.data.sources import open_source
from rdbcl_jax.export import export
from rdbcl_jax.lab.study.run import run_study
from rdbcl_jax.lock import Held, RemoteLock, is_held
from rdbcl_jax.remote import Store, at, copy_of, is_remote, local, opened
from rdbcl_jax.training.collect import collect
from rdbcl_jax.training.run import one_run
from tests.cloud import bucket, upload
from tests.engine import write_random_model
from tests.test_distributed import TRAIN, finish, same_steps, splits, start, start_joined


@pytest.fixture(scope="module")
def gs(tmp_path_factory):
    with bucket() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDBCL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield name


def test_only_gs_is_a_place_elsewhere(gs):
    assert is_remote("gs://a/b") and not is_remote("a/b") and not is_remote("hf:a/b:train")
    for other in ("s3://a/b", "memory://a", "file:///a"):
        with pytest.raises(ValueError, match="expected a file of this machine, or gs://"):
            is_remote(other)
    assert copy_of("a/b") == local("a/b") == at("a/b")


def test_a_copy_is_brought_up_to_date_and_is_whole(gs):
    at(f"{gs}/copies/a/b.json").write_text("one")
    at(f"{gs}/copies/c.json").write_text("two")
    at(f"{gs}/copies/d.png").write_bytes(b"three")
    here = local(f"{gs}/copies", pictures=False)
    assert remote.files_below(here).keys() == {"a/b.json", "c.json"}
    changed = (here / "c.json").stat().st_ctime_ns
    at(f"{gs}/copies/a/b.json").write_text("another")
    at(f"{gs}/copies/e.json").write_text("new")
    local(f"{gs}/copies/[ce]*.json")
    assert (here / "e.json").read_text() == "new"
    assert (here / "c.json").stat().st_ctime_ns == changed  # not again
    at(f"{gs}/copies/c.json").unlink()
    local(f"{gs}/copies")
    assert (here / "a/b.json").read_text() == "another"
    assert remote.files_below(here).keys() == {"a/b.json", "d.png", "e.json"}
    # a process that shares the copies is at it; another one died an hour ago
    written, left = here / "f.json.host.1.2.draft", here / "f.json.host.3.4.draft"
    written.write_text("ha"), left.write_text("ha")
    os.utime(left, (time.time() - 4000,) * 2)
    local(f"{gs}/copies")
    assert written.exists() and not left.exists()
    written.unlink()


def test_records_and_their_pictures(gs, tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "p.png")
    (tmp_path / "train.jsonl").write_text('{"image": "p.png", "question": "?", "answer": "1"}\n')
    upload(tmp_path, f"{gs}/data/mine")
    for name in (f"{gs}/data/mine/train.jsonl", f"{gs}/data/mine/tr*.jsonl", f"{gs}/data/mine"):
        (row,) = (open_source(name)[i] for i in range(1))
        assert row.columns["answer"] == "1"
    picture = row.folder / "p.png"
    assert not picture.exists() and decode(picture).size == (3, 2) and picture.exists()
    with pytest.raises(ValueError, match="there is no such file"):
        decode(row.folder / "q.png")
    with pytest.raises(FileNotFoundError, match=f"no file at '{gs}/data/none.jsonl'"):
        open_source(f"{gs}/data/none.jsonl")


def test_a_workdir_is_kept_up_to_date_and_a_kill_loses_what_was_not_yet(gs):
    name = f"{gs}/stores/a"
    with Store(name) as store:
        (store.local / "samples").mkdir()
        (store.local / "samples/part").write_text("one")
        (store.local / "run.lock").write_text("mine")
        store.push()
        (store.local / "samples/part").rename(store.local / "samples/merged")
        store.push()
        with pytest.raises(ValueError, match=f"^{name}/x is damaged"), Store(name) as second:
            raise ValueError(f"{second.local}/x is damaged")
    assert not store.local.exists()
    assert remote.files_below(at(name)).keys() == {"samples/merged"}
    killed = Store(name).__enter__()
    killed.pull()
    (killed.local / "lost").write_text("")
    with opened(name) as folder:
        assert remote.files_below(folder).keys() == {"samples/merged"}
        (folder / "report.html").write_text("new")
    assert remote.files_below(at(name)).keys() == {"samples/merged", "report.html"}
    with pytest.raises(FileNotFoundError, match="there is no such folder"), opened(f"{gs}/none"):
        pass


def test_what_could_not_be_brought_there_is_kept_and_named(gs, monkeypatch):
    name = f"{gs}/stores/expired"
    with pytest.raises(PermissionError, match="token expired") as error, Store(name) as store:
        (store.local / "results.json").write_text("all of it")
        monkeypatch.setattr(Store, "push", fails)
    assert error.value.__notes__ == [f"what could not be brought to {name} is in {store.local}"]
    assert (store.local / "results.json").read_text() == "all of it"
    shutil.rmtree(store.local)


def fails(self):
    raise PermissionError("token expired")


def test_a_run_whose_workdir_was_taken_over_ends_with_its_next_save(gs, monkeypatch):
    monkeypatch.setattr(RemoteLock, "SETTLED", 0.0)
    name = f"{gs}/stores/taken"
    with (
        pytest.raises(Held, match=r"process 7 on elsewhere, .* has taken over"),
        Store(name) as store,
        one_run(store) as still_mine,
    ):
        still_mine()
        owner = {"host": "elsewhere", "pid": 7, "since": "a minute ago"}
        (at(name) / lock.FILE).write_text(json.dumps(owner))
        (store.local / "results.json").write_text("of the first")
        with pytest.raises(Held):
            lock.check_free(name)
        still_mine()
    assert remote.files_below(at(name)).keys() == {lock.FILE}  # nothing over the other's
    assert json.loads((at(name) / lock.FILE).read_text()) == owner


def test_one_run_has_a_workdir_until_it_gives_no_sign(gs, tmp_path, monkeypatch):
    monkeypatch.setattr(RemoteLock, "SETTLED", 0.0)
    name = at(f"{gs}/locks/a")
    with RemoteLock(name), pytest.raises(Held, match=f"process {os.getpid()} on .* last sign"):
        RemoteLock(name).__enter__()
    with RemoteLock(name, tmp_path):  # given back
        assert is_held(tmp_path)  # a report written there says that the run goes on
    assert not is_held(tmp_path)
    owner = {"host": "elsewhere", "pid": 7, "since": "yesterday"}
    (name / lock.FILE).write_text(json.dumps(owner))
    with pytest.raises(Held, match="process 7 on elsewhere"):
        RemoteLock(name).__enter__()
    gone = {**owner, "host": lock.socket.gethostname(), "pid": 2**22 + 1}  # no such process
    (name / lock.FILE).write_text(json.dumps(gone))
    with RemoteLock(name):
        pass
    (name / lock.FILE).write_text(json.dumps(owner))
    monkeypatch.setattr(lock, "_DEAD", -1.0)
    with RemoteLock(name):
        pass


def test_what_cannot_be_there_is_refused(gs, tmp_path):
    out = f"{gs}/out"
    for write in (
        lambda: prepare(next(iter(DATA_SETS)), tmp_path, out),
        lambda: export(f"{gs}/none@1", out),
        lambda: collect(f"{gs}/none", out),
        lambda: run_study(None, out, name="any"),
    ):
        with pytest.raises(ValueError, match=f"{out}: .* folder of this machine, expected one"):
            write()


def test_of_two_that_come_at_once_one_has_it(gs, monkeypatch):
    name, second = at(f"{gs}/locks/b"), {"host": "elsewhere", "pid": 7, "since": "now"}
    monkeypatch.setattr(time, "sleep", lambda _: (name / lock.FILE).write_text(json.dumps(second)))
    with pytest.raises(Held, match="process 7 on elsewhere"):
        RemoteLock(name).__enter__()


def test_states_are_saved_compared_and_removed_there(gs):
    state = {"a": jnp.arange(50_000.0), "b": jnp.ones(3, jnp.bfloat16)}
    order = []
    with Checkpoints(f"{gs}/states", keep=1, first=lambda: order.append("first")) as checkpoints:
        for step in (1, 2):
            checkpoints.save_step(step, state)
    assert checkpoints.steps() == [2] and not checkpoints.strays() and len(order) == 2
    again = Checkpoints(f"{gs}/states")
    found = again.restore_step(2, state)
    assert all((np.asarray(found[k]) == np.asarray(state[k])).all() for k in state)
    folder = at(f"{gs}/states/checkpoints/step_00000002/state/d")
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(Damaged, match="is damaged: its SHA-256"):
        Checkpoints(f"{gs}/states").restore_step(2, state)
    file.unlink()
    assert "is not there" in Checkpoints(f"{gs}/states").problem("step_00000002")


@pytest.mark.long
def test_a_run_of_two_machines_and_its_end_on_a_third(gs, tmp_path):
    """Model and workdir on gs://, and no file that both processes see: nothing is another."""
    base = upload(write_random_model(tmp_path / "base"), f"{gs}/two/base")
    model, workdir = f"--config.model.path={base}", f"{gs}/two/run"
    own = [{"RDBCL_CACHE_DIR": str(tmp_path / name), "TMPDIR": str(tmp_path)} for name in "abc"]
    first = (*TRAIN, model, f"--workdir={workdir}", "--config.sequence=('sum',)", "--distributed")
    finish(
        *start_joined(2, 2, *first, each=own[:2]),
        start(4, *TRAIN, model, f"--workdir={tmp_path / 'one'}", **own[2]),
    )
    with opened(workdir) as there:
        assert {path.name for path in (there / "processes").iterdir()} == {"1"}
    finish(start(4, *TRAIN, model, f"--workdir={workdir}", **own[2]))
    with opened(workdir) as there:
        same_steps(there, tmp_path / "one")
        assert splits(there) == splits(tmp_path / "one")
