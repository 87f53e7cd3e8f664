"""Worker: what the machine can do, float32 or bfloat16 matrix products and reading memory."""

from __future__ import annotations

import concurrent.futures
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.channel import Channel, versions


class Probe:
    """Rates of large matrix products and of long reads; the best of several, at every step.

    On a CPU the peak is the better of XLA's and of numpy's BLAS, so that it is no property of the
    library that is measured against it.
    """

    def __init__(self, dtype: str, sizes: tuple[int, ...], read_bytes: int):
        self.is_cpu = jax.devices()[0].platform == "cpu"
        self.threads = len(os.sched_getaffinity(0))
        self.dtype = dtype
        rng = np.random.default_rng(0)
        self.matrices = [rng.normal(size=(n, n)).astype(np.float32) for n in sizes]
        self.product = jax.jit(jnp.matmul)
        self.read = jax.jit(lambda x: (x * 2).max())
        if self.is_cpu:
            self.memory = np.ones(read_bytes // 4, np.float32)
            self.pool = concurrent.futures.ThreadPoolExecutor(self.threads)
        else:
            self.memory = jnp.ones(read_bytes // 2, jnp.bfloat16)

    def about(self) -> dict:
        device = jax.devices()[0]
        return {
            "device": f"{device.platform} {device.device_kind}",
            "threads": self.threads if self.is_cpu else None,
            "versions": versions("jax", "jaxlib", "numpy"),
        }

    def step(self) -> dict[str, float]:
        """FLOP/s and bytes/s."""
        flops = 0.0
        for matrix in self.matrices:
            on_device = jnp.asarray(matrix, self.dtype)
            count = 2 * len(matrix) ** 3
            best = _fastest(lambda a=on_device: self.product(a, a).block_until_ready())
            flops = max(flops, count / best)
            if self.is_cpu and self.dtype == "float32":
                flops = max(flops, count / _fastest(lambda a=matrix: a @ a))
        return {"flops": flops, "bandwidth": self.memory.nbytes / _fastest(self._read)}

    def _read(self):
        if not self.is_cpu:
            return self.read(self.memory).block_until_ready()
        parts = np.array_split(self.memory, self.threads)
        return list(self.pool.map(lambda part: part.max(), parts))


def _fastest(function, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main():
    channel = Channel()
    request = channel.receive()
    on_cpu = jax.devices()[0].platform == "cpu"
    sizes = (256,) if request["small"] else (1024, 2048) if on_cpu else (8192,)
    probe = Probe(request["dtype"], sizes, 2**22 if request["small"] else 2**29)
    channel.send(probe.about())
    while channel.receive() is not None:
        channel.send(probe.step())


if __name__ == "__main__":
    main()
