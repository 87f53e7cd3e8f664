"""The wheel and the sdist: built, and in the long form installed and run in clean environments.

    python -m tests.wheels python3.11 python3.12 python3.13

For each interpreter: a new environment, the wheel with all it requires from the package index, then
what a user does, in a folder without the repository. Last result: docs/packaging.md.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (  # a run of seconds beside its compilations
    "--config.sequence=('sum','jigsaw')",
    "--config.base.steps=5",
    "--config.training.steps=1",
    "--config.data.validation_count=16",
    "--config.data.test_count=16",
    "--config.evaluation.batch_size=16",
)
COMMANDS = (
    ("help",),
    ("check", "--config=quickstart", *SMALL),
    ("train", "--config=quickstart", "--workdir=run", *SMALL),
    ("plan", "--topology=cpu", "--config=quickstart", "--config.model.path=run/base"),
    ("report", "run"),
    ("export", "run@1", "--out=exported"),
    ("train", "--config=configs/quickstart.py", "--workdir=run", *SMALL),  # finished: at once
)


def tracked() -> list[str]:
    """The repository's files, those that are new and not ignored among them."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    names = subprocess.check_output(listed, cwd=ROOT, text=True).split("\n")
    return sorted(name for name in names if name and (ROOT / name).is_file())


def build(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """(wheel, sdist) of a copy of the repository, by the setuptools that is installed."""
    source, out = folder / "source", folder / "dist"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    backend = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    for kind in ("sdist", "wheel"):
        code = backend.replace("sdist", kind)
        subprocess.run(
            [sys.executable, "-c", code, str(out)], cwd=source, check=True, stdout=subprocess.PIPE
        )
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def try_in(python: str, wheel: pathlib.Path, folder: pathlib.Path) -> str:
    """Installs the wheel for an interpreter and runs `COMMANDS`; returns a row of the table."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment["JAX_PLATFORMS"] = "cpu"
    here = folder / "empty"
    here.mkdir(parents=True)

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=here, env=environment, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    start = time.monotonic()
    run(python, "-m", "venv", str(folder / "env"))
    inside = folder / "env/bin/python"
    run(str(inside), "-m", "pip", "install", "--quiet", "--no-cache-dir", str(wheel))
    run(str(inside), "-m", "pip", "check")
    installed = time.monotonic()
    for words in COMMANDS:
        run(str(inside.parent / "rdbcl"), *words)
    for file in ("run/report.html", "exported/model.safetensors"):
        assert (here / file).stat().st_size, file
    said = run(str(inside), "-c", "import sys, jax; print(sys.version.split()[0], jax.__version__)")
    version, jax = said.split()
    took = f"{installed - start:.0f} s | {time.monotonic() - installed:.0f} s"
    return f"| {version} | {jax} | {took} |"


def main(pythons: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wheel, sdist = build(folder)
        print(
            f"{wheel.name}: {wheel.stat().st_size:,} bytes, {sdist.name}: {sdist.stat().st_size:,}"
        )
        print("| Python | jax | installed in | ran in |\n|---|---|---|---|")
        for python in pythons:
            print(try_in(python, wheel, folder / pathlib.Path(python).name), flush=True)
            shutil.rmtree(folder / pathlib.Path(python).name)


if __name__ == "__main__":
    main(sys.argv[1:] or [sys.executable])
