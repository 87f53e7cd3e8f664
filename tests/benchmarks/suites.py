"""The suites: which programs are set against each other, and what is made of their times."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re
import subprocess
import sys
import time

from tests.benchmarks import arithmetic, workload
from tests.benchmarks.tables import Results, ratios, spread
from tests.benchmarks.workers import Worker, WorkerError, alternate, started
from tests.benchmarks.workload import Workload

PHASES = ("generate", "reference", "update", "total")
# of larger ones 3
REPEATS = {"small": 9, "small images": 9, "medium": 7, "long-tailed": 5, "images": 5}
LEAST_MEMORY = 2**25  # bytes
WARMUP = 2  # the first step compiles; the second finds every buffer where it will stay


@dataclasses.dataclass(frozen=True)
class Settings:
    out: pathlib.Path
    small: bool  # seconds only, to see that everything runs
    sizes: tuple[str, ...] | None
    repeats: int | None
    programs: tuple[str, ...]
    pythons: dict[str, str]  # of the peers that are installed

    def repeats_of(self, w: Workload) -> int:
        return self.repeats or (2 if self.small else REPEATS.get(w.name, 3))

    def workloads(self, more: bool = False) -> list[Workload]:
        """`more`: pictures and long-tailed lengths too. On an accelerator the small models only
        measure how fast programs are dispatched."""
        if self.sizes:
            return [workload.SIZES[name] for name in self.sizes]
        if self.small:
            return [workload.SMALL, *([workload.SMALL_IMAGES] if more else [])]
        text = [workload.SMALL, workload.MEDIUM, workload.LARGE]
        if _platform() != "cpu":
            text = [workload.LARGE, workload.HALF_BILLION]
        return [*text, *([workload.LONG_TAILED, workload.IMAGES] if more else [])]

    def worker(self, module: str, label: str) -> Worker:
        python = self.pythons.get(module.removeprefix("peer_"), sys.executable)
        return Worker(module, self.out / "logs" / f"{label.replace(' ', '-')}.log", python)

    def ours(self, w: Workload, *, naive: bool = False) -> tuple[Worker, dict]:
        form = " naive" if naive else ""
        request = {"workload": w.to_json(), "naive": naive}
        return self.worker("ours", f"ours {w.name}{form}"), request

    def probe(self, dtype: str) -> tuple[Worker, dict]:
        return self.worker("probe", "probe"), {"dtype": dtype, "small": self.small}


def limit(settings: Settings, results: Results) -> None:
    """Each phase against the machine's own limits, probed in the same rounds."""
    for w in settings.workloads():
        with started(probe=settings.probe(w.dtype), ours=settings.ours(w)) as (workers, about):
            results.programs(about)
            steps = alternate(
                workers,
                repeats=settings.repeats_of(w),
                warmup=WARMUP,
                requests={"ours": {"prefill": True}},
            )
        results.samples({"workload": w.to_json()}, steps)
        peaks = _column(steps["probe"], "flops")
        bandwidths = _column(steps["probe"], "bandwidth")
        _limit_flops(results, w, steps["ours"], peaks)
        _limit_decode(results, w, steps["ours"], peaks, bandwidths)
    results.note(
        "FLOPs: matrix products that a step with shared prompts needs, attention's causal half, "
        "backward twice forward; what is computed again to save memory does not count. "
        "Least time of a decoded token: the later of its FLOPs at the peak and its bytes at the "
        "bandwidth; weights that stay in a cache can be read faster than memory."
    )


def _limit_flops(results, w, steps, peaks):
    needs = {
        "generate": arithmetic.generate_flops(w),
        "reference": arithmetic.forward_flops(w),
        "update": arithmetic.update_flops(w),
    }
    for phase, flops in needs.items():
        seconds = _column(steps, phase)
        achieved = [flops / s for s in seconds]
        results.row(
            "FLOP/s over the measured peak of matrix products",
            size=w.name,
            phase=phase,
            seconds=spread(seconds),
            GFLOP=flops / 1e9,
            **{"GFLOP/s": _scaled(achieved, 1e-9), "peak GFLOP/s": _scaled(peaks, 1e-9)},
            share=ratios(achieved, peaks),
        )


def _limit_decode(results, w, steps, peaks, bandwidths):
    rollouts = w.prompts * w.samples
    seconds = [step / rollouts for step in _decode_step(steps, w)]
    needed_bytes, needed_flops = arithmetic.decode_bytes(w), arithmetic.decode_flops(w)
    by_memory = [needed_bytes / b for b in bandwidths]
    by_flops = [needed_flops / p for p in peaks]
    least = [max(a, b) for a, b in zip(by_memory, by_flops, strict=True)]
    results.row(
        "A decoded token, prefill taken off",
        size=w.name,
        rollouts=str(rollouts),
        **{
            "µs": _scaled(seconds, 1e6),
            "kB": needed_bytes / 1e3,
            "GB/s needed": _scaled([needed_bytes / s for s in seconds], 1e-9),
            "GB/s measured": _scaled(bandwidths, 1e-9),
            "share of bandwidth": ratios(by_memory, seconds),
            "share of FLOP peak": ratios(by_flops, seconds),
            "share of the later": ratios(least, seconds),
        },
    )


def prefix(settings: Settings, results: Results) -> None:
    """Shared prompts against a copy for every response."""
    base = workload.SMALL if settings.small else workload.MEDIUM
    t = 16 if settings.small else 64
    cases = itertools.product((0.5,) if settings.small else (0.5, 2, 8), (4, 8, 16))
    for over, g in list(cases)[: 1 if settings.small else None]:
        w = base.replace(prompts=2, samples=g, prompt_length=int(over * t), response_length=t)
        programs = {"shared": settings.ours(w), "naive": settings.ours(w, naive=True)}
        with started(**programs) as (workers, about):
            results.programs(about)
            # a copy of the prompt for each of 16 takes long
            repeats = settings.repeats or (2 if settings.small else 5 if g < 16 else 3)
            steps = alternate(workers, repeats=repeats, warmup=WARMUP)
        results.samples({"workload": w.to_json()}, steps)
        naive, shared = steps["naive"], steps["shared"]
        flops = arithmetic.update_flops(w) / arithmetic.update_flops(arithmetic.naive(w))
        predicted = arithmetic.token_ratio(w)
        measured = ratios(_column(shared, "update"), _column(naive, "update"))
        results.row(
            "Time of shared prompts over time of copies",
            **{"L/T": over, "G": str(g)},
            tokens=predicted,
            FLOPs=flops,
            **_phase_ratios(shared, naive),
            **{"update over tokens": measured["median"] / predicted},
        )
    results.note(
        "tokens: (L + G·T) / (G·(L + T)), the prediction. FLOPs: the same ratio with attention and "
        "the output head, which sharing does not make cheaper. Below 1 is faster than copies."
    )


def tail(settings: Settings, results: Results) -> None:
    """Sampling long-tailed lengths, against as many steps in which no rollout has ended."""
    base = workload.SMALL if settings.small else workload.MEDIUM
    t = 32 if settings.small else 256
    sizes = ((2, 4),) if settings.small else ((4, 4), (4, 8), (4, 16), (64, 1))
    for p, g in sizes:
        even = base.replace(prompts=p, samples=g, response_length=t)
        long_tailed = even.replace(mean_length=t // 6)
        programs = {"even": settings.ours(even), "tail": settings.ours(long_tailed)}
        with started(**programs) as (workers, about):
            results.programs(about)
            steps = alternate(workers, repeats=settings.repeats_of(base), warmup=WARMUP)
        results.samples({"workload": long_tailed.to_json()}, steps)
        longest = _column(steps["tail"], "longest")
        pairs = zip(_column(steps["even"], "generate"), longest, strict=True)
        rows = [seconds * drawn / t for seconds, drawn in pairs]  # all alive for as many steps
        tokens = _column(steps["tail"], "tokens")
        results.row(
            "Sampling long-tailed lengths",
            prompts=str(p),
            G=str(g),
            longest=spread(longest),
            **{
                "seconds, long-tailed": spread(_column(steps["tail"], "generate")),
                "seconds, as many steps of all rows": spread(rows),
                "time over that": ratios(_column(steps["tail"], "generate"), rows),
                "share of tokens": ratios(tokens, [n * p * g for n in longest]),
            },
        )
    results.note(
        "Lengths are geometric with a mean of T / 6. As many steps of all rows: a step of rollouts "
        "of T tokens each, times longest / T. Share of tokens: what the time would be if a rollout "
        "that has ended cost nothing and the others as much as before."
    )


def drafts(settings: Settings, results: Results) -> None:
    """What drafts could gain at most: of k tokens of every rollout, as a step of k times as many
    rows against one of as many as there are; of whole responses, as the pass that reads them."""
    base = workload.SMALL if settings.small else workload.MEDIUM
    for w in (base,) if settings.small else (workload.SMALL.replace(prompts=8), base):
        widths = {k: w.replace(name=f"{w.name} {k}", prompts=k * w.prompts) for k in (1, 4, 8)}
        programs = {str(k): settings.ours(wide) for k, wide in widths.items()}
        with started(**programs) as (workers, about):
            results.programs(about)
            steps = alternate(
                workers,
                repeats=settings.repeats_of(w),
                warmup=WARMUP,
                requests={name: {"prefill": True} for name in programs},
            )
        results.samples({"workload": w.to_json()}, steps)
        one, *several = (_decode_step(steps[k], w) for k in programs)
        for k, wide in zip((4, 8), several, strict=True):
            results.row(
                "Drafts, were all of them accepted",
                size=w.name,
                rollouts=str(w.prompts * w.samples),
                k=str(k),
                **{
                    "a token, ms": _scaled(one, 1e3),
                    "k tokens, ms": _scaled(wide, 1e3),
                    "generation faster by": ratios([k * seconds for seconds in one], wide),
                },
            )
        results.row(
            "Drafts of whole responses, were all of them accepted",
            size=w.name,
            rollouts=str(w.prompts * w.samples),
            tokens=str(w.response_length),
            **{
                "generate, s": spread(whole := _column(steps["1"], "generate")),
                "read, s": spread(read := _column(steps["1"], "reference")),
                "generation faster by": ratios(whole, read),
            },
        )
    results.note(
        "k tokens of a rollout are read in one pass as so many rollouts: the same products. What "
        "drafts cost beside that, and those that are not accepted, come on top."
    )


def _decode_step(steps: list[dict[str, float]], w: Workload) -> list[float]:
    """Seconds of one."""
    pairs = zip(_column(steps, "generate"), _column(steps, "prefill"), strict=True)
    return [(generate - prefill) / (w.response_length - 1) for generate, prefill in pairs]


def scaling(settings: Settings, results: Results) -> None:
    """One axis doubled at a time, against the base in the same rounds."""
    base = workload.SMALL if settings.small else workload.MEDIUM
    doubled = {
        "B": base.replace(prompts=2 * base.prompts),
        "G": base.replace(samples=2 * base.samples),
        "L": base.replace(prompt_length=2 * base.prompt_length),
        "T": base.replace(response_length=2 * base.response_length),
        "V": base.replace(vocab_size=2 * base.vocab_size),
    }
    for axis, w in list(doubled.items())[: 1 if settings.small else None]:
        programs = {"base": settings.ours(base), "doubled": settings.ours(w.replace(name=axis))}
        with started(**programs) as (workers, about):
            results.programs(about)
            steps = alternate(workers, repeats=settings.repeats_of(base), warmup=WARMUP)
        results.samples({"axis": axis, "workload": w.to_json()}, steps)
        for quantity, predicted in _growth(base, w).items():
            grown, before = steps["doubled"], steps["base"]
            measured = _ratios(grown, before, quantity)
            is_memory = quantity == "memory"
            results.row(
                "Growth when one axis doubles",
                axis=axis,
                of=f"{quantity}, MB" if is_memory else quantity,
                base=_scaled(_column(before, quantity), 1e-6 if is_memory else 1),
                doubled=_scaled(_column(grown, quantity), 1e-6 if is_memory else 1),
                predicted=predicted,
                measured=measured,
                **{"measured over predicted": measured and measured["median"] / predicted},
            )
    results.note(
        "Seconds; memory is what a step adds to what the process holds. Predicted: by FLOPs; "
        "for generate that is an upper bound, since a decode step reads the same weights for few "
        "rollouts as for many; memory by `arithmetic.step_bytes`."
    )


def compile_(settings: Settings, results: Results) -> None:
    """The quickstart's first step, where nothing was compiled before, and once more."""
    steps: dict[str, list[dict[str, float]]] = {"first": [], "again": []}
    for repeat in range(settings.repeats or (1 if settings.small else 3)):
        for name, found in steps.items():
            found.append(first_step(settings.out / f"compile-{repeat}", name))
    results.samples({}, steps)
    for name, found in steps.items():
        times = {part: spread(_column(found, part)) for part in found[0]}
        results.row("Until the first step is done, seconds", run=name, **times)
    again, first = (_column(steps[name], "compiling") for name in ("again", "first"))
    results.row("Seconds of compiling, again over first", share=ratios(again, first))
    results.note(
        "The quickstart with a base of 20 steps, one task of one step. Evaluated: from the base "
        "being ready to the end of its evaluation; step: from there to the end of the first step, "
        "sampled, scored and learned from. Compiling: of all programs, as the run says at its end."
    )


def first_step(folder: pathlib.Path, name: str) -> dict[str, float]:
    """Seconds of a run's parts, until its first step has been learned from; compiled programs are
    kept in the folder."""
    short = ("base.steps=20", "training.steps=1", "training.checkpoint_every=0", "sequence=sum,")
    words = ["train", "--config=configs/quickstart.py", f"--workdir={folder / name}"]
    words += [
        f"--compilation-cache={folder / 'programs'}",
        *(f"--config.{field}" for field in short),
    ]
    begun, at, compiling = time.perf_counter(), [], 0.0
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "rdbcl_jax.cli", *words],
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout
        for line in run.stdout:
            if "] evaluating all" in line or "] task 1/1" in line:
                at.append(time.perf_counter())
            if "programs compiled" in line:
                compiling = sum(map(float, re.findall(r" in ([\d.]+) s", line)))
    if run.returncode or len(at) < 3:
        raise RuntimeError(f"the run in {folder / name} ended with {run.returncode}")
    base, evaluated, learned = at[:3]
    return {
        "base": base - begun,
        "evaluated": evaluated - base,
        "step": learned - evaluated,
        "compiling": compiling,
    }


def _growth(base: Workload, w: Workload) -> dict[str, float]:
    needs = {
        "generate": arithmetic.generate_flops,
        "reference": arithmetic.forward_flops,
        "update": arithmetic.update_flops,
        "memory": arithmetic.step_bytes,
    }
    return {quantity: need(w) / need(base) for quantity, need in needs.items()}


def peers(settings: Settings, results: Results) -> None:
    """GRPO steps of other libraries over ours."""
    names = [name for name in settings.programs if name == "ours" or name in settings.pythons]
    for name in set(settings.programs) - set(names):
        results.note(f"{name} is not installed: left out.")
    for w in settings.workloads(more=True):
        # tunix's Qwen2 sees no pictures, and its sampler is told no lengths
        fitting = [n for n in names if n != "tunix" or not (w.vision or w.mean_length)]
        measured = _measure_peers(settings, results, w, fitting)
        for name, (about, steps) in measured.items():
            results.row(
                "Seconds of a warm step",
                size=w.name,
                program=name,
                parameters=f"{about['parameters'] / 1e6:.2f} M",
                threads=str(about["threads"]),
                **{phase: spread(_column(steps, phase)) for phase in ("host", *PHASES)},
                **{"memory added, MB": _scaled(_column(steps, "memory"), 1e-6)},
                **({"tokens": spread(_column(steps, "tokens"))} if w.mean_length else {}),
            )
        ours = measured.get("ours", (None, None))[1]
        for name, (_, steps) in measured.items():
            if name != "ours" and ours:
                results.row(
                    "A peer's time over ours (above 1: ours is faster)",
                    size=w.name,
                    program=name,
                    **_phase_ratios(steps, ours),
                )


def _measure_peers(settings, results, w, names) -> dict[str, tuple[dict, list[dict]]]:
    """Of every program what it says about itself, and its steps. A peer that fails is noted."""
    programs = {}
    for name in names:
        if name == "ours":
            programs[name] = settings.ours(w)
        else:
            worker = settings.worker(f"peer_{name}", f"{name} {w.name}")
            programs[name] = (worker, {"workload": w.to_json()})
    try:
        with started(**programs) as (workers, about):
            if "trl" in workers and w.name in REPEATS:
                about["trl"]["threads"] = _best_threads(workers["trl"], about["trl"]["threads"])
            results.programs(about)
            light = w.name in REPEATS
            steps = alternate(
                workers,
                repeats=settings.repeats_of(w),
                warmup=WARMUP if light else 1,
                together=light,
            )
    except WorkerError as error:
        results.note(f"{w.name}: {error}")
        rest = [name for name in names if programs[name][0] is not error.worker]
        return _measure_peers(settings, results, w, rest) if rest else {}
    results.samples({"workload": w.to_json(), "about": about}, steps)
    return {name: (about[name], steps[name]) for name in programs}


def _best_threads(worker: Worker, most: int) -> int:
    """Of all threads, half and a quarter of them, the number with the fastest of two steps.

    Torch's own choice is all of them; XLA's programs always have all of them.
    """
    candidates = sorted({most, max(most // 2, 1), max(most // 4, 1)}, reverse=True)
    seconds = {}
    for threads in candidates:
        seconds[threads] = min(worker.ask(threads=threads)["total"] for _ in range(2))
    best = min(candidates, key=seconds.get)
    worker.ask(threads=best)
    return best


def _phase_ratios(above: list[dict], below: list[dict]) -> dict[str, dict]:
    return {quantity: _ratios(above, below, quantity) for quantity in (*PHASES, "memory")}


def _ratios(above: list[dict], below: list[dict], quantity: str) -> dict | None:
    """Round by round; None for memory too little to tell from what the process holds anyway."""
    below_ = _column(below, quantity)
    if quantity == "memory" and min(below_) < LEAST_MEMORY:
        return None
    return ratios(_column(above, quantity), below_)


def _column(steps: list[dict[str, float]], name: str) -> list[float]:
    return [step[name] for step in steps]


def _scaled(values: list[float], factor: float) -> dict[str, float]:
    return spread([value * factor for value in values])


@functools.cache
def _platform() -> str:
    """JAX's default, asked in a process of its own: here it would hold on to the accelerator."""
    code = "import jax; print(jax.default_backend())"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.split()[-1]


SUITES = {
    "peers": peers,
    "prefix": prefix,
    "tail": tail,
    "limit": limit,
    "scaling": scaling,
    "drafts": drafts,
    "compile": compile_,
}
