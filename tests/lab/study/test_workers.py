"""Processes that do jobs: what fails, what dies, and what each does before its first job."""

import os

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


def test_a_worker_outlives_failing_jobs_and_is_started_again_where_it_died(tmp_path):
    def run(name, work):
        job = Job(name, ("group",), work, ConfigDict(), tmp_path / name, tmp_path / f"{name}.txt")
        (worker,) = pool.idle
        worker.start(job)
        assert pool.running == [job] and not pool.idle and worker.group == ("group",)
        while not (over := pool.wait(1.0)):
            pass
        (done,) = over
        assert done.job is job and done.seconds > 0
        return done.error

    with Workers(1, tmp_path / "cache", prepare) as pool:
        assert run("first", note) == "" and "noted" in (tmp_path / "first.txt").read_text()
        assert run("first", note).startswith("FileExistsError")
        assert "Traceback" in (tmp_path / "first.txt").read_text()
        assert run("second", note) == ""
        assert (tmp_path / "second/prepared").read_text() == "1"  # once in a process
        assert run("third", die) == "the worker died with exit code 3"
        assert run("fourth", note) == ""
