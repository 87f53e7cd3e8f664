"""The launcher's pure parts; none of these needs xmanager."""

import importlib.util
import json
import os
import pathlib
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
    for seed, run in zip((3, 4), runs, strict=True):
        assert "--config.training.steps=7" in run.flags
        assert run.flags[-1] == f"--config.seed={seed}"


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


def test_settings_are_swept_like_seeds_and_methods(launcher):
    sweep = ["--sweep=kl.beta=0.01,0.1", "--sweep=config.model.path=a/b"]
    _, runs = runs_of(launcher, "--methods=rdbcl,grpo", "--seeds=0,1", *sweep)
    assert len({run.workdir for run in runs}) == len({run.name for run in runs}) == 8
    assert runs[1].workdir == "runs/rdbcl,kl.beta=0.1,model.path=a_b/seed0"
    assert {"--config.kl.beta=0.1", "--config.model.path=a/b"} <= {*runs[1].flags}
    assert [run.index for run in runs] == [*range(8)]


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
        (["--executor=vertex", "--resources=h100=8"], "found h100=8"),
        (["--executor=vertex", "--resources=a100=32"], "on one host"),
        (["--executor=vertex", "--resources=tpu_v3=32"], "would not find each other"),
        (["--executor=vertex", "--resources=a100=8,replicas=2"], "of one kind"),
        (["--executor=vertex", "--resources=a100=8"], "/gcs/BUCKET"),
        ([*POD, "--parallel=2"], "serves one run at a time"),
        ([*POD, "--accelerator=v5litepod-16"], "--runtime"),
        (["--accelerator=v5litepod-16"], "for --executor=pod"),
        (["--sweep=seed=1,2"], "have options of their own"),
        (["--sweep=kl.beta"], "FIELD=VALUE,VALUE"),
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


# ------------------------------------------------------------------------------ a TPU slice

# stands for gcloud: keeps its arguments and what state things are in, and runs what it is told to
# run on all workers on this machine; a slice is preempted as often as `preempted` says
GCLOUD = """
import json, os, pathlib, subprocess, sys
here, args = pathlib.Path(os.environ["FAKE"]), sys.argv[1:]
state = json.loads((here / "state").read_text())
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(args) + "\\n")
kind, verb = args[2:4]
command = next((a.partition("=")[2] for a in args if a.startswith("--command=")), None)
code = 0
if (kind, verb) == ("queued-resources", "create"):
    assert state["slice"] is None
    state |= {"queue": "WAITING_FOR_RESOURCES", "slice": "CREATING"}
elif (kind, verb) == ("queued-resources", "delete"):
    assert {"--force", "--quiet"} <= {*args}
    state |= {"queue": None, "slice": None}
elif verb == "describe" and kind == "queued-resources":
    after = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE"}
    state["queue"] = after.get(state["queue"], state["queue"])
    if state["queue"] == "ACTIVE":
        state["slice"] = "READY"
    print(state["queue"])
elif verb == "describe" and state["silent"]:
    state["silent"] -= 1
    print("ERROR: (gcloud.compute.tpus.tpu-vm.describe) There was a problem", file=sys.stderr)
    code = 1
elif verb == "describe" and not state["slice"]:
    print("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource", file=sys.stderr)
    code = 1
elif verb == "describe":
    print(state["slice"])
elif verb == "scp":
    copied = subprocess.run(["cp", args[4], here / "home" / args[5].partition(":")[2]])
    code = copied.returncode
elif state["slice"] != "READY":
    code = 255
else:
    if "--distributed" in command and state["lost"]:
        state["lost"] -= 1
        code = 255
    elif "--distributed" in command and state["goes_on"]:
        state["goes_on"] -= 1
        print("rdbcl train: runs belongs to another run: process 7 on t1v-0", file=sys.stderr)
        code = 1
    elif state["at"] in command and state["preempted"]:
        state["preempted"] -= 1
        state |= {"queue": "SUSPENDED", "slice": "PREEMPTED"}
        print("rdbcl train: stopped by SIGTERM after step 3, which is saved", file=sys.stderr)
        code = state["code"]
    else:
        code = subprocess.run(["bash", "-c", command], cwd=here / "home").returncode
(here / "state").write_text(json.dumps(state))
sys.exit(code)
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """What the stand-in was asked, and a way to say how things are there."""
    for folder in ("bin", "home/there"):
        (tmp_path / folder).mkdir(parents=True)
    program = tmp_path / "bin/gcloud"
    program.write_text(f"#!{sys.executable}{GCLOUD}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))

    class Cloud:
        home = tmp_path / "home"

        def is_(self, **state):
            known = {"queue": None, "slice": None, "preempted": 0, "at": "--distributed", "code": 0}
            known |= {"lost": 0, "goes_on": 0, "silent": 0}
            (tmp_path / "state").write_text(json.dumps(known | state))

        @property
        def state(self):
            return json.loads((tmp_path / "state").read_text())

        @property
        def calls(self):
            lines = (tmp_path / "calls").read_text().splitlines()
            return [json.loads(line)[2:] for line in lines]

    return Cloud()


def pod(launcher, *argv, python="echo"):
    """Runs what the launcher would; `python` stands for the interpreter there."""
    options, (run,) = runs_of(launcher, *POD, "--poll=0", f"--python={python}", *argv)
    return subprocess.run(launcher.command(run, options), capture_output=True, text=True)


# its setup fails unless the repository was copied
MADE = ["--accelerator=v5litepod-16", "--runtime=v2-alpha-tpuv5-lite", "--spot"]
MADE += ["--setup=test -f launch/xm_train.py"]


def test_a_command_runs_on_all_hosts_and_survives_the_shells_on_its_way(launcher, cloud):
    cloud.is_(slice="READY")
    template = "it's {prompt} $HOME"
    argv = ["--directory=there", f"--config.data.template={template}"]
    done = pod(launcher, *argv)
    call = cloud.calls[0]
    assert call[:3] == ["tpu-vm", "ssh", "v5e"] and {"--worker=all", "--zone=us-west4-a"} <= {*call}
    assert done.returncode == 0 and f"--config.data.template={template}" in done.stdout
    assert done.stdout.rstrip().endswith("--distributed") and "create" not in str(cloud.calls)


@pytest.mark.parametrize("at,code", [("--distributed", 0), ("--distributed", 255), ("tar", 255)])
def test_a_preempted_slice_is_made_again_and_the_run_goes_on(launcher, cloud, at, code):
    """A trainer that is told to stop ends with 0, and a connection that breaks with 255."""
    cloud.is_(preempted=2, at=at, code=code)
    done = pod(launcher, *MADE, "--project=p", "--retries=3", python="true")
    assert done.returncode == 0, done.stderr
    verbs = [call[1] for call in cloud.calls if call[0] == "queued-resources"]
    assert [v for v in verbs if v != "describe"] == ["create", "delete"] * 3
    create = next(call for call in cloud.calls if call[1] == "create")
    assert create[2:] == [
        "v5e-0",
        "--zone=us-west4-a",
        "--project=p",
        "--node-id=v5e-0",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]
    assert cloud.state["slice"] is None  # nothing that costs is left
    while_ = "was preempted while it was set up" if at == "tar" else "is PREEMPTED, and its run not"
    assert f"v5e-0 {while_}" in done.stderr and "; 2 retries are left" in done.stderr


def test_retries_come_to_an_end_and_nothing_is_left(launcher, cloud):
    cloud.is_(preempted=9)
    done = pod(launcher, *MADE, "--retries=1")
    assert done.returncode == 1 and "no retries are left" in done.stderr
    assert cloud.state["slice"] is None and cloud.state["preempted"] == 7


def test_a_lost_connection_ends_no_run(launcher, cloud):
    cloud.is_(lost=2, goes_on=3)
    done = pod(launcher, *MADE, "--retries=5", python="true")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the connection to v5e-0 was lost") == 2
    assert done.stderr.count("goes on from before the connection was lost") == 3
    assert [call[1] for call in cloud.calls].count("create") == 1
    assert any("ServerAliveInterval" in word for word in str(cloud.calls).split("'"))
    cloud.is_(lost=9)
    done = pod(launcher, *MADE, "--retries=2", python="true")
    assert done.returncode == 1 and "v5e-0 stays: its run may go on there" in done.stderr
    assert cloud.state["slice"] == "READY"
    # a workdir that another run has had before is no lost connection
    cloud.is_(goes_on=1)
    done = pod(launcher, *MADE, "--retries=5", python="true")
    assert done.returncode == 1 and "the command failed on v5e-0 with 1" in done.stderr


def test_a_slice_of_which_nothing_is_known_stays(launcher, cloud):
    """The launcher's network breaks: its connection and its question fail alike."""
    cloud.is_(lost=1, silent=1)
    done = pod(launcher, *MADE, "--retries=3", python="true")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gcloud cannot say how v5e-0 is") == 1
    assert [call[1] for call in cloud.calls].count("create") == 1
    cloud.is_(slice="READY", lost=9, silent=9)
    done = pod(launcher, "--retries=1", python="true")
    assert done.returncode == 1 and "v5e stays: its run may go on there" in done.stderr
    assert cloud.state["slice"] == "READY"


def test_a_launcher_that_is_told_to_stop_does_so_at_once(launcher, cloud, tmp_path):
    cloud.is_()
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\necho began\nsleep 60\n")
    slow.chmod(0o755)
    options, (run,) = runs_of(launcher, *POD, "--poll=0", f"--python={slow}", *MADE)
    command = launcher.command(run, options)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert any("began" in line for line in process.stdout)
    process.terminate()
    assert process.wait(20) == 143
    assert cloud.state["slice"] is None


def test_a_command_that_fails_is_not_tried_again(launcher, cloud):
    cloud.is_()
    done = pod(launcher, *MADE, python="false")
    assert done.returncode == 1 and "the command failed on v5e-0 with 1" in done.stderr
    assert cloud.state["slice"] is None
    assert [call[1] for call in cloud.calls].count("create") == 1


def test_a_slice_that_is_gone_and_was_not_made_here_is_named(launcher, cloud):
    cloud.is_(slice="READY", preempted=1)
    done = pod(launcher)
    assert done.returncode == 1 and "v5e is PREEMPTED, and was not made here" in done.stderr
