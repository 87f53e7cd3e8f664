"""`python -m tests.train_several FOLDER BASE METHODS|MESHES|RESUMED [--distributed]`: short runs,
one after the other, from a base model.

What methods do on the host is of all processes' rows: a tracker, a memorised response, the records
of the Fisher information, prompts of earlier tasks.
"""

import pathlib
import sys

KILLED_AT = 3  # the second step of the second task

# over four processes, two of which hold the same rows; others: `python -m tests.over_processes`
METHODS = {
    "mssr": {"rollout.samples": 1, "mssr.survey": True},
}
# (data, fsdp, tensor), over two processes, which share the parameters. On (1, 1, 4), where both
# hold all rows, a run is killed, and the methods run on (2, 1, 2). More of them, over four:
# `python -m tests.over_processes`
MESHES = ((1, 2, 2),)


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
    elif what == "MESHES":
        for sizes in MESHES:
            train(config_of("rdbcl", mesh(*sizes)), workdir / "-".join(map(str, sizes)))
        config = config_of("mssr", killed | mesh(1, 1, 4))
        if flags:
            killed_at(KILLED_AT, config, workdir / "killed")
        else:
            train(config, workdir / "killed")
    else:
        train(config_of("mssr", killed | mesh(1, 2, 1)), workdir / "killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
