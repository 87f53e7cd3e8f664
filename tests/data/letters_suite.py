"""A suite of one's own, in the fewest lines: say which letter comes next."""

from rdbcl_jax.data.records import Record

TASKS = {"next": 1, "after_next": 2}


def make_records(task, split, count, seed):
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        Record(
            f"{task}-{split}-{seed}-{i}",
            task,
            f"{task} {letters[i % 24]}",
            (),
            letters[i % 24 + TASKS[task]],
            "exact",
        )
        for i in range(count)
    ]
