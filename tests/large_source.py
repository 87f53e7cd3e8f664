"""Long form: a Parquet file of gigabytes, read by two processes of a pod. How long one takes to
start once the file is checked, and what that adds to its memory.

    python -m tests.large_source [--rows=25000] [--level=headers] [--folder=DIR]

What it last found is in docs/data.md. The file is made in DIR, a temporary folder, and removed.
"""

import argparse
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rdbcl_jax.data.check import Check
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.pipeline import batches, indices
from rdbcl_jax.data.records import load_images
from rdbcl_jax.sharding import RowShard

PICTURES, GROUP = 32, 100  # different ones; rows of a row group, as `datasets` writes them


def write(path, rows):
    """Rows with JPEGs of 200 KB; no two are the same bytes."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        noise = rng.integers(0, 256, (480, 400, 3), np.uint8)
        Image.fromarray(noise).save(buffer, "JPEG", quality=95)
        made.append(buffer.getvalue())
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("question", pa.string()), ("answer", pa.string()), ("image", image)])
    with pq.ParquetWriter(path, schema, compression="none") as file:
        for start in range(0, rows, GROUP):
            numbers = range(start, min(start + GROUP, rows))
            table = {
                "question": [f"What is number {i}?" for i in numbers],
                "answer": [str(i) for i in numbers],
                "image": [
                    {"bytes": made[i % PICTURES] + i.to_bytes(8), "path": None} for i in numbers
                ],
            }
            file.write_table(pa.table(table, schema), row_group_size=GROUP)


def held():
    """MB of this process that are its own, and all that it has, files mapped included."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return [int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS")]


def child(path, level, process, steps=10, rows=64):
    """What one process of two finds: its start, and batches of which it reads its own rows."""
    before, began = held(), time.monotonic()
    records = load_records(path, task="large", check=Check(level, None, lambda: "large"))
    started, after = time.monotonic() - began, held()
    shard, began, most = RowShard((process,), 2, process), time.monotonic(), after
    made = batches(
        records,
        lambda items, ids: [load_images(record)[0].size for record in items],
        order=indices(len(records), rows, seed=0),
        shard=shard,
        threads=2,
    )
    for _ in range(steps):
        next(made)
        most = [max(pair) for pair in zip(most, held(), strict=True)]
    print(
        json.dumps(
            {
                "records": len(records),
                "start_s": round(started, 2),
                "added_mb": [round(b - a) for a, b in zip(before, after, strict=True)],
                "batch_s": round((time.monotonic() - began) / steps, 2),
                "added_at_most_mb": [round(b - a) for a, b in zip(before, most, strict=True)],
            }
        )
    )


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--rows", type=int, default=25_000)
    flags.add_argument("--level", default="headers", choices=["full", "headers"])
    flags.add_argument("--folder")
    flags.add_argument("--child", type=int)
    options = flags.parse_args()
    if options.child is not None:
        return child(options.folder, options.level, options.child)
    folder = pathlib.Path(tempfile.mkdtemp(dir=options.folder))
    environment = {**os.environ, "RDBCL_CACHE_DIR": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    try:
        path, began = folder / "large.parquet", time.monotonic()
        write(path, options.rows)
        size = path.stat().st_size
        print(f"{size / 2**30:.2f} GB written in {time.monotonic() - began:.0f} s", flush=True)

        def start(process):
            command = [sys.executable, "-m", "tests.large_source", f"--child={process}"]
            command += [f"--folder={path}", f"--level={options.level}"]
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

        print("the first time:", start(0).communicate()[0].strip(), flush=True)
        for process in [start(0), start(1)]:
            print("once checked:", process.communicate()[0].strip(), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
