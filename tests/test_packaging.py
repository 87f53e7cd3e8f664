"""What a wheel and an sdist hold; tests/wheels.py installs and runs them."""

import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.wheels import ROOT, build, tracked


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    """The wheel as it lies in site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_its_configs(unpacked):
    found = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    ours = {name for name in tracked() if name.startswith("rdbcl_jax/")}
    recipes = {f"rdbcl_jax/{name}" for name in tracked() if name.startswith("configs/")}
    metadata = {name for name in found if ".dist-info/" in name}
    assert found - metadata == ours | recipes
    assert "rdbcl_jax/py.typed" in found and "rdbcl_jax/configs/quickstart.py" in found


def test_the_metadata_says_what_is_new(unpacked):
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    text = metadata.read_text()
    for line in (ROOT / "CHANGELOG.md").read_text().splitlines()[:4]:
        assert line in text
    extras = {line.split()[1] for line in text.splitlines() if line.startswith("Provides-Extra")}
    assert {"tpu", "cuda", "tfds", "docs", "xm", "test", "bench"} <= extras


def test_the_sdist_holds_all_that_is_tracked(built):
    with tarfile.open(built[1]) as sdist:
        found = {str(pathlib.PurePosixPath(*pathlib.Path(m.name).parts[1:])) for m in sdist}
    assert set(tracked()) <= found


def test_a_recipe_is_found_by_its_name_anywhere(unpacked, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
        "from rdbcl_jax.recipes import find_config, load_config\n"
        "print(load_config('quickstart').sequence[0], load_config('studies/mssr', 'ci').baseline)\n"
        "print(find_config('configs/quickstart.py'), find_config('other.py'))"
    )
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "PYTHONPATH": ""}
    words = [sys.executable, "-P", "-c", code]
    out = subprocess.check_output(words, cwd=tmp_path, env=environment, text=True)
    file = unpacked / "rdbcl_jax/configs/quickstart.py"
    assert out.split() == ["sum", "grpo", str(file), "other.py"]
