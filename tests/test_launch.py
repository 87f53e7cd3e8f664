"""The launcher's pure parts; none of these needs xmanager."""

import importlib.util
import pathlib
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "launch" / "xm_train.py"
REQUIRED = ["--config=configs/quickstart.py", "--workdir=runs"]
POD = ["--executor=pod", "--tpu=v5e", "--zone=us-west4-a"]


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("xm_train", SCRIPT)
    module = sys.modules["xm_train"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["xm_train"]


def runs_of(launcher, *argv):
    options, overrides, _ = launcher.parse([*REQUIRED, *argv])
    return options, launcher.make_runs(options, overrides)


def test_a_run_for_every_seed_of_every_method(launcher):
    _, runs = runs_of(launcher, "--methods=rdbcl,grpo", "--seeds=0,1,2")
    assert len({run.workdir for run in runs}) == 6
    assert [run.name for run in runs[:3]] == ["rdbcl-seed0", "grpo-seed0", "rdbcl-seed1"]
    assert runs[1].flags == (
        "--config=configs/quickstart.py",
        "--workdir=runs/grpo/seed0",
        "--config.method=grpo",
        "--config.seed=0",
    )


def test_overrides_reach_every_run_but_seed_and_method_win(launcher):
    _, runs = runs_of(launcher, "--seeds=3,4", "--config.training.steps=7", "--config.seed=9")
    for run in runs:
        assert "--config.training.steps=7" in run.flags
        assert run.flags[-1] == f"--config.seed={run.seed}"


def test_flags_of_xmanager_are_kept_apart(launcher):
    _, overrides, xm_flags = launcher.parse([*REQUIRED, "--xm_upgrade_db=true", "--config.seed=1"])
    assert (overrides, xm_flags) == (["--config.seed=1"], ["--xm_upgrade_db=true"])


def test_local_command(launcher):
    options, (run,) = runs_of(launcher)
    expected = [sys.executable, "-m", "rdbcl_jax.cli", "train", *run.flags]
    assert launcher.command(run, options) == expected
    options.python = "/venv/bin/python"
    assert launcher.command(run, options)[0] == "/venv/bin/python"


def test_the_flags_reach_the_trainer(launcher, tmp_path):
    """A wrong method is refused before anything is made, by name: all flags were understood."""
    argv = [f"--workdir={tmp_path}", "--methods=nope", "--config.dry_run=True"]
    options, (run,) = runs_of(launcher, *argv)
    command = launcher.command(run, options)
    done = subprocess.run(command, cwd=SCRIPT.parent.parent, capture_output=True, text=True)
    assert done.returncode == 1 and "config.method is 'nope'" in done.stderr


def test_pod_command_survives_the_shells_on_its_way(launcher):
    template = "it's {prompt} $HOME"
    options, (run,) = runs_of(launcher, *POD, f"--config.data.template={template}")
    program, *args = launcher.command(run, options)
    assert program == "gcloud" and "v5e" in args and "--worker=all" in args
    remote = next(a for a in args if a.startswith("--command=")).removeprefix("--command=")
    words = shlex.split(remote)
    assert words[:4] == ["cd", "rdbcl_jax", "&&", "python3"]
    assert f"--config.data.template={template}" in words


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus"], "not understood: --bogus"),
        (["--config.seed", "1"], "--config.FIELD=VALUE"),
        (["--seeds=1,1"], "expected different names"),
        (["--seeds=one"], "--seeds"),
        (["--parallel=0"], "at least 1"),
        (["--executor=pod"], "--tpu and --zone"),
        (["--executor=vertex"], "--resources"),
        (["--executor=vertex", "--resources=tpu_v5e=8"], "--executor=pod"),
    ],
)
def test_mistakes_are_named(launcher, capsys, argv, message):
    with pytest.raises(SystemExit):
        launcher.parse([*REQUIRED, *argv])
    assert message in capsys.readouterr().err


def test_without_xmanager_it_says_how_to_get_it(launcher, monkeypatch):
    monkeypatch.setitem(sys.modules, "xmanager", None)  # as if not installed
    with pytest.raises(SystemExit, match=r"pip install xmanager.*constraints.txt"):
        launcher.main(REQUIRED)


def test_show_needs_no_xmanager(launcher, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "xmanager", None)
    launcher.main([*REQUIRED, "--seeds=0,1", "--show"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_missing_program_is_named(launcher, monkeypatch):
    monkeypatch.setenv("PATH", "")
    options, _ = runs_of(launcher, *POD)
    local = SimpleNamespace(Local=lambda: SimpleNamespace(Spec=object))
    with pytest.raises(SystemExit, match="gcloud is not on this machine's PATH"):
        launcher.package(None, local, options)
