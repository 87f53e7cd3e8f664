"""The accelerators that a run can be planned for, and how their names are read."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

GIB = 2**30


class Chip(NamedTuple):
    """One accelerator, by its maker's data sheet.

    Attributes:
      name: as people say it.
      memory: bytes that programs may use.
      flops: products of bfloat16 matrices, dense, in operations a second.
      bandwidth: of its memory, bytes a second.
      links: bytes a second that it can receive from its neighbours along one axis of the torus, of
        both together; of a GPU: from the others of its node.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    links: float


# TPUs: what programs may use is what XLA's compiler says it has when one needs more; rates are
# those of cloud.google.com/tpu/docs and jax-ml.github.io/scaling-book
TPUS = {
    "v4": Chip("TPU v4", int(30.75 * GIB), 275e12, 1.23e12, 0.9e11),
    "v5e": Chip("TPU v5e", int(15.75 * GIB), 197e12, 0.82e12, 0.9e11),
    "v5p": Chip("TPU v5p", int(95.74 * GIB), 459e12, 2.77e12, 1.8e11),
    "v6e": Chip("TPU v6e", int(31.25 * GIB), 918e12, 1.64e12, 1.8e11),
}
# GPUs: nine tenths of their memory, which the command line asks for (JAX's own default is three
# quarters); the rest is left to CUDA and its libraries
GPUS = {
    "a100": Chip("A100 80 GB", int(0.9 * 80e9), 312e12, 2.04e12, 3.0e11),
    "h100": Chip("H100 80 GB", int(0.9 * 80e9), 989e12, 3.35e12, 4.5e11),
    "h200": Chip("H200 141 GB", int(0.9 * 141e9), 989e12, 4.8e12, 4.5e11),
}
# of how many sides a slice's shape is, and how many chips the largest has
TORI = {"v4": (3, 4096), "v5e": (2, 256), "v5p": (3, 8960), "v6e": (2, 256)}
EXAMPLES = {
    **{name: f"{name}:{'2x2x4' if sides == 3 else '2x4'}" for name, (sides, _) in TORI.items()},
    **{name: f"gpu:{name}x8" for name in GPUS},
    "gpu": "gpu:h100x8",
    "cpu": "cpu",
}


class Topology(NamedTuple):
    """Chips that are connected.

    Attributes:
      name: as it was given.
      chip: what each is; None: this machine's CPU.
      size: how many.
      devices: for which programs can be compiled; None: there is no compiler for them here.
    """

    name: str
    chip: Chip | None
    size: int
    devices: Sequence[Any] | None


def topology_of(name: str) -> Topology:
    """The chips that `--topology` names.

    Raises:
      ValueError: a name that is not known, or a shape that is none of that TPU.
      ImportError: libtpu, the compiler for TPUs, is not installed.
    """
    kind, _, shape = name.partition(":")
    if name == "cpu":
        devices = jax.local_devices(backend="cpu")
        return Topology(name, None, len(devices), devices)
    found = re.fullmatch(r"([a-z]+\d+)x([1-9]\d*)", shape)
    if kind == "gpu" and found and found[1] in GPUS:
        return Topology(name, GPUS[found[1]], int(found[2]), None)
    if kind in TPUS and re.fullmatch(r"\d+(x\d+){1,2}", shape):
        _check_shape(kind, shape)
        devices = _tpus(kind, shape)
        return Topology(name, TPUS[kind], len(devices), devices)
    near = difflib.get_close_matches(
        re.sub(r"x\d+$", "", shape) if kind == "gpu" else kind, EXAMPLES
    )
    meant = f"; did you mean {EXAMPLES[near[0]]!r}?" if near else ""
    forms = ", ".join(dict.fromkeys(EXAMPLES.values()))
    raise ValueError(f"--topology is {name!r}, expected one such as {forms}{meant}")


def _check_shape(kind: str, shape: str) -> None:
    """Raises ValueError for the shape of a slice that no TPU of that kind has; known without the
    compiler."""
    x, y, z = (*map(int, shape.split("x")), 1)[:3]
    sides, most = TORI[kind]
    whole_hosts = x % 2 == y % 2 == 0 or (x, y, z) == (1, 1, 1)
    if not whole_hosts or (sides == 2 and z > 1) or not 0 < x * y * z <= most:
        form = "two sides" if sides == 2 else "three sides, of which the first two are"
        raise ValueError(
            f"--topology is '{kind}:{shape}', which is no slice of {TPUS[kind].name}: expected "
            f"{form} even, as in {EXAMPLES[kind]}, and at most {most} chips, or a single one, "
            f"{kind}:{'x'.join('1' * sides)}"
        )


def _tpus(kind: str, shape: str) -> Sequence[Any]:
    """Devices of a slice, which only compile."""
    try:
        import libtpu  # noqa: F401  (JAX finds it by itself)
    except ImportError:
        raise ImportError(
            "the compiler for TPUs is not installed; install libtpu, which needs no TPU: "
            "pip install 'jax[tpu]' (gpu:… and cpu need none)"
        ) from None
    options: dict[str, Any] = {}
    if re.fullmatch("1(x1)*", shape):  # a host of its own, where libtpu would expect four chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":  # both cores of a chip are one device, as JAX has them; libtpu lists two
        options["chip_config_name"] = "megacore"
    with _environment():
        try:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{kind}:{shape}", **options
            )
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"--topology {kind}:{shape} is no slice: {said}") from None
        _compile_nothing(found.devices[0])
    return found.devices


def _compile_nothing(device: Any) -> None:
    """libtpu reads the environment's flags when it first compiles."""
    like = jax.ShapeDtypeStruct((), "int32", sharding=SingleDeviceSharding(device))
    jax.jit(lambda x: x).lower(like).compile()


@contextlib.contextmanager
def _environment():
    """libtpu asks Google Cloud on which TPU it runs, and waits for an answer: here on none. And it
    ends the process over flags of other platforms."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    told = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is held, so several plans may be made at once
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        **os.environ,
        "XLA_FLAGS": " ".join(f for f in flags if not f.startswith(("--xla_cpu_", "--xla_gpu_"))),
    }
    before = dict(os.environ)
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
