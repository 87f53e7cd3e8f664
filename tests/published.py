"""What training each published model will hold: README's table.

    python -m tests.published [NAME …]

A row is a step of GRPO with its KL to the policy from before the task: 8 prompts of one picture,
8 rollouts of 256 tokens, one prompt a micro-batch, bfloat16 activations, float32 parameters where
they learn, full rematerialisation; with LoRA of rank 16 on the language model too. A chip has room
where nine tenths of its memory suffice.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

from ml_collections import ConfigDict

from rdbcl_jax.config import RunConfig, default_config
from rdbcl_jax.planning.published import PUBLISHED, write
from rdbcl_jax.training.footprint import GIB, Footprint, footprint

CHIPS = {"v5e": (16, True), "v6e": (32, True), "H100": (80, False)}  # GB, and has a kernel


def recipe(name: str, path: pathlib.Path, rank: int = 0) -> ConfigDict:
    """The step that the table is of, for the model at `path`."""
    config = default_config()
    config.method = "grpo"
    config.kl.beta = 0.01
    config.model.path = str(path)
    config.model.lora.rank = rank
    config.data.prompt_lengths = (PUBLISHED[name].prompt,)
    config.data.patch_slots = (PUBLISHED[name].patches,)
    config.rollout.prompts = config.rollout.samples = 8
    config.training.prompts_per_device = 1
    config.rollout.max_tokens = 256
    return config


def measure(name: str, rank: int = 0) -> Footprint:
    with tempfile.TemporaryDirectory() as folder:
        path = write(name, pathlib.Path(folder))
        return footprint(RunConfig.of(recipe(name, path, rank)))


def cells(found: Footprint) -> tuple[str, str]:
    """GiB on a TPU and elsewhere, and the chips that have them."""
    sizes = {kernel: found.most(kernel) / GIB for kernel in (True, False)}
    room = [
        chip for chip, (size, kernel) in CHIPS.items() if sizes[kernel] * GIB <= 0.9 * size * 1e9
    ]
    return f"{sizes[True]:.1f} / {sizes[False]:.1f}", ", ".join(room) or "none"


def main(names: list[str]) -> None:
    print("| | parameters | full: GiB | fits | LoRA: GiB | fits |")
    print("|---|---|---|---|---|---|")
    for name in names or PUBLISHED:
        full, adapters = measure(name), measure(name, rank=16)
        row = (name, f"{full.parameters / 1e6:,.0f} M", *cells(full), *cells(adapters))
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
