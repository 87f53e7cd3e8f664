"""Eight CPU devices for every test, and cheap compilation; set before anything imports jax."""

import importlib.util
import os
import tempfile

from tests.compiler import QUICK

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    flags += " --xla_force_host_platform_device_count=8"
if "xla_backend_optimization_level" not in flags:
    flags += f" {QUICK}"
os.environ["XLA_FLAGS"] = flags.strip()
# several tests build the same program; it is compiled once per session
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="rdbcl-tests-"))
os.environ["RDBCL_CACHE_DIR"] = tempfile.mkdtemp(prefix="rdbcl-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402  (after the environment is set)
import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Dropped after each file: a worker that keeps all of a session's takes 6 GB."""
    yield
    jax.clear_caches()


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that no worker is left alone with them at the end; what is
    compiled for TPUs only where their compiler is."""
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("tpu"):
                item.add_marker(pytest.mark.skip(reason="libtpu (684 MB) is not installed"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
