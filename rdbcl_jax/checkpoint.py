"""What a resume needs, saved with orbax: the train state, and the policy after every task.

    WORKDIR/checkpoints/task_02/       parameters after the second task: a KL reference
    WORKDIR/checkpoints/fisher_02/     what EWC keeps after the second task
    WORKDIR/checkpoints/step_00000120/ the train state after 120 steps, with what the host carries
                                       through a task; only the latest is kept

Batches and random keys are pure functions of a number, so the numbers stand for both.
"""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    def __init__(self, workdir: str | pathlib.Path):
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        self.directory.mkdir(parents=True, exist_ok=True)

    def save_task(self, task: int, params: Any) -> None:
        """`task` counts from 1: the number of tasks learned."""
        self._save(self.directory / f"task_{task:02}", params)

    def restore_task(self, task: int, like: Any) -> Any:
        return self._restore(self.directory / f"task_{task:02}", like)

    def save_fisher(self, task: int, fisher: Any) -> None:
        self._save(self.directory / f"fisher_{task:02}", fisher)

    def restore_fisher(self, task: int, like: Any) -> Any:
        return self._restore(self.directory / f"fisher_{task:02}", like)

    def save_step(self, step: int, state: Any) -> None:
        """Saves the state after `step` steps, then drops the one before."""
        old = self._steps()
        self._save(self.directory / f"step_{step:08}", state)
        if jax.process_index() == 0:
            for other in old:
                if other != step:
                    shutil.rmtree(self.directory / f"step_{other:08}", ignore_errors=True)

    def latest_step(self) -> int | None:
        """Steps behind the latest saved state; None without one."""
        return max(self._steps(), default=None)

    def restore_step(self, step: int, like: Any) -> Any:
        return self._restore(self.directory / f"step_{step:08}", like)

    def names_of_step(self, step: int) -> set[str]:
        """Names of the arrays of a saved state, such as `train/params/lm_head/kernel`."""
        return set(_shapes(ocp.metadata(self.directory / f"step_{step:08}").metadata))

    def _steps(self) -> list[int]:
        # orbax renames a directory to its final name when all of it is written
        return [int(p.name[5:]) for p in self.directory.glob("step_*") if p.name[5:].isdigit()]

    def _save(self, path: pathlib.Path, tree: Any) -> None:
        ocp.save(path, tree, overwrite=True)

    def _restore(self, path: pathlib.Path, like: Any) -> Any:
        """`like`: arrays or ShapeDtypeStructs with shardings, the exact structure saved."""
        saved = ocp.metadata(path).metadata
        _check_structure(path, saved, like)
        return ocp.load(path, like)


def _check_structure(path, saved, like) -> None:
    """Orbax silently skips what the template lacks; a resume must not lose anything."""

    found, expected = _shapes(saved), _shapes(like)
    if found != expected:
        keys = sorted(found.keys() | expected.keys())
        differing = [k for k in keys if found.get(k) != expected.get(k)]
        lines = [f"{k}: found {found.get(k)}, expected {expected.get(k)}" for k in differing[:20]]
        raise ValueError(
            f"{path} was saved with another model or optimizer; use a new workdir, or the config "
            "of that run:\n  " + "\n  ".join(lines)
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): tuple(a.shape) for k, a in leaves}
