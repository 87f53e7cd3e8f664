"""Suite `easy_vqa`: pictures of one shape each, and questions about them, from the package of that
name. Its tasks are `easy_vqa:shape`, `easy_vqa:color`, `easy_vqa:yes_no`, and `easy_vqa:all`.

The published set has the splits train and test; here the pictures of train whose number ends in 0
are the validation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rdbcl_jax.data.records import Record

_SHAPES = ("circle", "rectangle", "triangle")
TASKS = {"all": "exact", "shape": "exact", "color": "exact", "yes_no": "yes_no"}


def make_records(task: str, split: str, count: int, seed: int) -> list[Record]:
    """`count` records, or all that there are, in an order that the seed decides."""
    questions, answers, pictures, paths = _published("test" if split == "test" else "train")
    held_out = {"train": False, "validation": True}.get(split)
    chosen = [
        index
        for index, (answer, picture) in enumerate(zip(answers, pictures, strict=True))
        if task in ("all", _kind(answer)) and held_out in (None, picture % 10 == 0)
    ]
    order = np.random.default_rng(seed).permutation(len(chosen))[:count]
    return [
        Record(
            id=f"{split}-{index}",
            task=task,
            prompt=questions[index],
            images=(Path(paths[pictures[index]]),),
            answer=answers[index],
            verifier="yes_no" if _kind(answers[index]) == "yes_no" else "exact",
        )
        for index in (chosen[place] for place in order.tolist())
    ]


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no"
    return "shape" if answer in _SHAPES else "color"


def _published(split: str) -> tuple[list[str], list[str], list[int], dict[int, str]]:
    """Questions, answers, numbers of pictures, and the files of those."""
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(
            "tasks of easy_vqa need easy-vqa: pip install 'rdbcl_jax[easy_vqa]'"
        ) from error
    read = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }
    questions, paths = read[split]
    return *questions(), paths()
