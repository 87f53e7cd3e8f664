"""`python -m tests.train_several FOLDER BASE METHODS|KILLED|RESUMED [--distributed]`: short runs
from a base model.

What methods do on the host is of all processes' rows: a tracker, a memorised response, the records
of the Fisher information, prompts of earlier tasks.
"""

import pathlib
import sys

KILLED_AT = 1  # the second step of the first task: the boundary and the second follow

# over four processes, two of which hold the same rows; others: `python -m tests.over_processes`
METHODS = {
    "mssr": {"rollout.samples": 1, "mssr.survey": True},
}
# (data, fsdp, tensor) over two processes: where a run is killed, both hold all rows and half of
# each layer's widths; where it goes on, each has its own rows and half of every parameter. More
# meshes, over four processes: `python -m tests.over_processes`
KILLED, RESUMED = (1, 1, 4), (1, 2, 1)


def mesh(data: int, fsdp: int, tensor: int) -> dict[str, int]:
    return {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}


def main(folder: str, base: str, what: str, *flags: str) -> None:
    from rdbcl_jax.distributed import join_processes

    if flags:
        join_processes()
    from rdbcl_jax.training.run import train
    from tests.small_config import get_config
    from tests.tiny_runs import killed_at

    def config_of(method: str, overrides: dict):
        config = get_config()
        config.method, config.model.path = method, base
        config.update_from_flattened_dict(overrides)
        return config

    killed, workdir = METHODS["mssr"] | {"training.checkpoint_every": 1}, pathlib.Path(folder)
    if what == "METHODS":
        for method, overrides in METHODS.items():
            train(config_of(method, overrides | mesh(2, 1, 2)), workdir / method)
    elif what == "KILLED" and flags:
        killed_at(KILLED_AT, config_of("mssr", killed | mesh(*KILLED)), workdir / "killed")
    else:
        sizes = RESUMED if what == "RESUMED" else KILLED
        train(config_of("mssr", killed | mesh(*sizes)), workdir / "killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
