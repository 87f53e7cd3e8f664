"""Every method on every mesh, over four processes of two devices and in one of eight: the long form
of `tests/test_distributed.py`.

    python -m tests.over_processes [FOLDER] [MESH/METHOD …]

A line for each. Each is also killed in its second task and goes on in one process, on another mesh.
The first that differs ends it.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time

from tests import train_several
from tests.train_several import mesh

PROCESSES, DEVICES = 4, 2
KILLED_AT = 3  # the second step of the second task
METHODS = train_several.METHODS | {
    "dyme": {"model.lora.rank": 4},
    "ewc": {"ewc.sequences": 16},
    "portable_replay": {"portability.control": "shuffled"},
    "variance": {
        "method": "rdbcl",
        "model.lora.rank": 4,
        "prompts.order": "variance",
        "prompts.samples": 2,
        "prompts.every": 4,
    },
    "reinforce_ada": {"prompts.order": "volatility", "reinforce_ada.rounds": 2},
}
# (data, fsdp, tensor), each with the one on which a killed run goes on
MESHES = {
    (8, 1, 1): (1, 2, 4),
    (1, 8, 1): (2, 2, 2),
    (1, 1, 8): (8, 1, 1),
    (2, 2, 2): (1, 8, 1),
    (4, 1, 2): (1, 4, 2),
    (1, 2, 4): (2, 4, 1),
}


def name_of(sizes: tuple[int, ...]) -> str:
    return "-".join(map(str, sizes))


def child(folder: str, base: str, name: str, how: str, *flags: str) -> None:
    """In a process: `how` is "whole", "killed" or "resumed"."""
    from rdbcl_jax.distributed import join_processes

    if flags:
        join_processes()
    from rdbcl_jax.training.run import train
    from tests.small_config import get_config
    from tests.tiny_runs import killed_at

    sizes, method = name.split("/")
    on = next(m for m in MESHES if name_of(m) == sizes)
    config = get_config()
    config.model.path = base
    asked = {"method": method, **METHODS[method], "training.checkpoint_every": 1}
    config.update_from_flattened_dict(asked)
    config.update_from_flattened_dict(mesh(*(MESHES[on] if how == "resumed" else on)))
    if how == "killed":
        killed_at(KILLED_AT, config, pathlib.Path(folder))
    else:
        train(config, folder)


def main(folder: str, *only: str) -> None:
    from tests.engine import write_random_model
    from tests.test_distributed import finish, same_steps, splits, start, start_joined

    base = str(write_random_model(pathlib.Path(folder) / "base"))
    for name in only or [f"{name_of(m)}/{method}" for m in MESHES for method in METHODS]:
        began = time.perf_counter()
        one, several, other = (f"{folder}/{name}/{part}" for part in ("one", "several", "other"))
        run = "tests.over_processes", "child"
        finish(start(8, *run, one, base, name, "whole"))
        for workdir, how in ((several, "whole"), (other, "killed")):
            joined = start_joined(
                PROCESSES, DEVICES, *run, workdir, base, name, how, "--distributed"
            )
            finish(*joined)
        finish(start(8, *run, other, base, name, "resumed"))
        for workdir in map(pathlib.Path, (several, other)):
            same_steps(workdir, pathlib.Path(one))
            assert splits(workdir) == splits(pathlib.Path(one)), workdir
        print(
            f"{name}: equal, and after a kill, in {time.perf_counter() - began:.0f} s", flush=True
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main(*(sys.argv[1:] or [tempfile.mkdtemp()]))
