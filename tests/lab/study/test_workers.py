"""Processes that do jobs: what fails, what dies, and what each does before its first job."""

import os
import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study.workers import Job, Workers


def prepare():
    os.environ["PREPARED"] = str(int(os.environ.get("PREPARED", "0")) + 1)


def note(config, workdir):
    print("noted")
    workdir.mkdir()
    (workdir / "prepared").write_text(os.environ["PREPARED"])


def die(config, workdir):
    os._exit(3)


def tell(config, workdir):
    import jax

    workdir.mkdir()
    (workdir / "programs").write_text(jax.config.values["jax_compilation_cache_dir"])


def over(pool, job):
    """The job, done by the only worker."""
    (worker,) = pool.idle
    worker.start(job)
    assert pool.running == [job] and not pool.idle and worker.group == job.group
    while not (found := pool.wait(1.0)):
        pass
    (done,) = found
    return done


def test_programs_are_kept_where_they_are_asked_to_be(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # which would stand
    job = Job("any", (), tell, ConfigDict(), tmp_path / "any", tmp_path / "any.txt")
    with Workers(1, prepare, str(tmp_path / "kept")) as pool:
        assert over(pool, job).error == ""
    place = pathlib.Path((tmp_path / "any/programs").read_text())
    assert place.is_dir() and place.parent == tmp_path / "kept"


def test_a_worker_outlives_failing_jobs_and_is_started_again_where_it_died(tmp_path):
    def run(name, work):
        job = Job(name, ("group",), work, ConfigDict(), tmp_path / name, tmp_path / f"{name}.txt")
        done = over(pool, job)
        assert done.job is job and done.seconds > 0
        return done.error

    with Workers(1, prepare) as pool:
        assert run("first", note) == "" and "noted" in (tmp_path / "first.txt").read_text()
        assert run("first", note).startswith("FileExistsError")
        assert "Traceback" in (tmp_path / "first.txt").read_text()
        assert run("second", note) == ""
        assert (tmp_path / "second/prepared").read_text() == "1"  # once in a process
        assert run("third", die) == "the worker died with exit code 3"
        assert run("fourth", note) == ""
