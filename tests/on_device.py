"""A recipe's own steps on the accelerator of this machine, beside what `rdbcl plan` says of it.

    python -m tests.on_device RECIPE TOPOLOGY [--folder=DIR] [--steps=8] [--field.path=NUMBER …]
    python -m tests.on_device rdbcl_qwen2_5_vl_3b:lora gpu:h100x1

The model has the published size and random weights, so no response ends before the longest; every
prompt has a picture as large as the recipe takes. An evaluation, then steps in two halves: in the
first one each phase is waited for and timed, in the second the run goes as it always does. The last
step ends it; nothing is saved. What it last found is in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.watch import Watch

GIB = 2**30


class Enough(BaseException):
    """The last step is done; nothing in the program catches it."""


class Timed(Watch):
    """A watch of the first device that also knows what each phase took, in seconds."""

    def __init__(self) -> None:
        import jax

        self.device = jax.local_devices()[0]
        self.seconds: dict[str, list[float]] = {}
        self.waits = True
        super().__init__(lambda: (self.device.memory_stats() or {}).get("bytes_in_use", 0), 0.002)

    @contextlib.contextmanager
    def within(self, phase: str):
        with super().within(phase):
            self._wait()
            start = time.perf_counter()
            try:
                yield
            finally:
                self._wait()
                if self.waits:
                    self.seconds.setdefault(phase, []).append(time.perf_counter() - start)

    def _wait(self) -> None:
        """A device runs its programs one after the other: the last one asked for is behind all."""
        import jax

        if self.waits:
            (jax.device_put(0.0) + 1).block_until_ready()


def picture_records(folder: pathlib.Path, side: int, count: int) -> None:
    """Files of three splits: each record a picture of noise and a question."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(folder / f"{i}.png")
    for split in ("train", "validation", "test"):
        rows = (
            {"prompt": f"<image>\nWhat is in picture {split} {i}?", "answer": str(i)}
            | {"image": str(folder / f"{i}.png")}
            for i in range(count)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(recipe: str, folder: pathlib.Path, changes: list[str]) -> Any:
    """The recipe's, but for its files and what a reward of random text can be."""
    from tests.plans import loaded

    config = loaded(recipe)
    for change in changes:
        field, _, value = change.removeprefix("--").partition("=")
        config.update_from_flattened_dict({field: json.loads(value)})
    config.model.path = str(folder / "model")
    side = int(config.model.max_pixels**0.5)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    picture_records(data, side, config.rollout.prompts)
    config.data.image_root = str(data)
    config.sequence, config.evaluation.tasks = ("noise",), ()
    config.tasks.noise = {s: str(data / f"{s}.jsonl") for s in ("train", "validation", "test")}
    config.data.prompt_lengths = config.data.prompt_lengths[-1:]
    config.data.patch_slots = config.data.patch_slots[-1:]
    config.data.images_per_prompt = (1,)
    config.rewards.functions = {"brief": "tests.engine:brief"}  # random weights are never right
    config.rewards.weights = {"format": 0.2, "accuracy": 1.0, "brief": 1.0}
    config.training.checkpoint_every = 0
    config.log.to = ()
    return config


def run(recipe: str, folder: pathlib.Path, changes: list[str], last: int) -> None:
    """`last` steps; what was seen goes to a file."""
    from rdbcl_jax.reporting.run_log import RunLog
    from rdbcl_jax.training.run import train

    watch, write_step = Timed(), RunLog.write_step
    watch.over_phases()
    steps: list[dict[str, float]] = []

    def write(self, row):
        write_step(self, row)
        steps.append({name: row[name] for name in ("step_time", "completions/mean_length")})
        print(row, flush=True)
        found: dict[str, Any] = {"device": watch.device.device_kind, "steps": steps}
        found |= {
            "stats": watch.device.memory_stats(),
            "most": watch.most,
            "seconds": watch.seconds,
        }
        (folder / "found.json").write_text(json.dumps(found))
        watch.waits = len(steps) < last // 2
        if len(steps) == last:
            raise Enough

    RunLog.write_step = write  # type: ignore[method-assign]
    with contextlib.suppress(Enough):
        train(config_of(recipe, folder, changes), folder / "run")


def plan(recipe: str, topology: str, folder: pathlib.Path, changes: list[str]) -> dict[str, Any]:
    from rdbcl_jax.config import RunConfig
    from rdbcl_jax.planning.chips import topology_of
    from rdbcl_jax.planning.make import make_plan

    config = RunConfig.of(config_of(recipe, folder, changes))
    made = make_plan(config, topology_of(topology))
    assert made.chip
    peaks = {phase.name: phase.peak for phase in made.phases}
    seconds = {phase.name: phase.seconds(made.chip) for phase in made.step}
    flops = {phase.name: phase.flops for phase in made.step}
    found = {"peaks": peaks, "seconds": seconds, "flops": flops, "tokens": made.tokens}
    return found | {"rate": made.chip.flops}


def table(found: dict[str, Any], planned: dict[str, Any]) -> str:
    """Of the phases: GiB and seconds, measured and planned. The first two steps compile."""
    columns = ("", "GiB", "planned", "seconds", "at least", "share of peak")
    print(f"{found['device']}: steps {[round(s['step_time'], 2) for s in found['steps']]} s")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for phase, most in found["most"].items():
        took = found["seconds"].get(phase, [])
        took = sum(took[-2:]) / len(took[-2:]) if took else None
        peak, least = planned["peaks"].get(phase), planned["seconds"].get(phase)
        cells = [phase, f"{most / GIB:.1f}", f"{peak / GIB:.1f}" if peak else ""]
        cells += [f"{took:.2f}" if took else "", f"{least:.2f}" if least else ""]
        share = planned["flops"][phase] / planned["rate"] / took if took and least else None
        cells += [f"{share:.0%}" if share else ""]
        lines.append("| " + " | ".join(cells) + " |")
    last = found["steps"][len(found["steps"]) // 2 + 1 :]
    seconds = sum(s["step_time"] for s in last) / len(last)
    least, rate = sum(planned["seconds"].values()), planned["tokens"] / seconds
    lines.append(f"\na step: {seconds:.2f} s, at least {least:.2f}; {rate:,.0f} tokens a second")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recipe")
    options.add_argument("topology")
    options.add_argument("--folder", type=pathlib.Path)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--part", choices=("write", "run"))
    args, changes = options.parse_known_args()
    if args.part == "write":
        from rdbcl_jax.planning.published import published
        from tests.plans import loaded
        from tests.real_size import write

        return write(published(loaded(args.recipe).model.path), args.folder / "model")
    if args.part == "run":
        return run(args.recipe, args.folder, changes, args.steps)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        call = [sys.executable, "-m", "tests.on_device", args.recipe, args.topology]
        call += [f"--folder={folder}", f"--steps={args.steps}", *changes]
        for part in ("write", "run"):  # a process each: what one holds is not held by the next
            if part == "write" and (folder / "model/config.json").exists():
                continue
            start = time.perf_counter()
            subprocess.run([*call, f"--part={part}"], check=True)
            print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
        os.environ["JAX_PLATFORMS"] = "cpu"
        found = json.loads((folder / "found.json").read_text())
        print(table(found, plan(args.recipe, args.topology, folder, changes)))


if __name__ == "__main__":
    main()
