"""Out of memory on the device: one line that says in which phase, of what sizes, and what helps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax

from rdbcl_jax.config import RunConfig
from rdbcl_jax.json_files import flatten

EXHAUSTED = "RESOURCE_EXHAUSTED"  # XLA's word, when it compiles a program and when it runs one


class OutOfMemory(MemoryError):
    """The device has not enough memory for a phase of the run; one line says which."""


class Phase(NamedTuple):
    """What a run does, the options that say how large it is, and what takes less."""

    doing: str
    sizes: tuple[str, ...]
    help: str


_ROLLOUTS = ("rollout.prompts", "rollout.samples", "rollout.max_tokens")
_SPREAD = "spread the parameters over more devices (mesh.fsdp, mesh.tensor)"
PHASES = {
    "loading": Phase(
        "loading the model",
        ("model.path", "model.param_dtype", "model.lora.rank"),
        f"set model.param_dtype to bfloat16, or {_SPREAD}",
    ),
    "sampling": Phase(
        "sampling", _ROLLOUTS, f"lower rollout.prompts or rollout.max_tokens, or {_SPREAD}"
    ),
    "reference": Phase(
        "scoring responses under the frozen policies",
        (*_ROLLOUTS, "training.chunk_size"),
        "lower training.chunk_size or rollout.prompts, or do without a KL term (kl.beta=0)",
    ),
    "update": Phase(
        "updating the policy",
        (*_ROLLOUTS, "training.prompts_per_device", "training.chunk_size", "model.remat"),
        "lower training.prompts_per_device or training.chunk_size, set model.remat to full, train "
        f"adapters alone (model.lora.rank), or {_SPREAD}",
    ),
    "evaluation": Phase(
        "evaluating",
        ("evaluation.batch_size", "rollout.max_tokens"),
        "lower evaluation.batch_size",
    ),
    "boundary": Phase(
        "passing from one task to the next, when copies of the policy lie side by side",
        ("model.param_dtype", "model.lora.rank", "kl.reference"),
        f"train adapters alone (model.lora.rank), or {_SPREAD}",
    ),
}


@contextlib.contextmanager
def within_memory(config: RunConfig, phase: str) -> Iterator[None]:
    """Raises OutOfMemory in place of XLA's error; any other passes. `phase`: a name in PHASES."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if EXHAUSTED not in str(error):
            raise
        raise OutOfMemory(_line(config, PHASES[phase], str(error))) from error


class _WithConfig(Protocol):
    @property
    def config(self) -> RunConfig: ...


def phase(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a function whose first argument has the run's config: it is that phase."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(owner: _WithConfig, *args: Any, **kwargs: Any) -> Any:
            with within_memory(owner.config, name):
                return function(owner, *args, **kwargs)

        return run

    return decorate


def _line(config: RunConfig, phase: Phase, message: str) -> str:
    fields = flatten(config.to_dict())
    sizes = ", ".join(f"{name}={fields[name]}" for name in phase.sizes)
    found = message[message.index(EXHAUSTED) + len(EXHAUSTED) :].strip(": ").splitlines()[0]
    return (
        f"out of memory on the device while {phase.doing}: {found[:200]} ({sizes}{_in_use()}); "
        f"{phase.help}. What is saved is kept"
    )


def _in_use() -> str:
    """Of the first device, where it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if not {"bytes_in_use", "bytes_limit"} <= stats.keys():
        return ""
    return f"; {stats['bytes_in_use'] / 2**30:.1f} of {stats['bytes_limit'] / 2**30:.1f} GiB in use"
