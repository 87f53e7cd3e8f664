"""A second testbed of the studies: easy-VQA, whose pictures, questions and answers were published
by others, as six tasks by what is asked (suite `easy_vqa_traced`), on a tiny model.

`--config=configs/studies/testbed_vqa.py:small` is what small forms start from.
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import load_config

SUITE = "easy_vqa_traced"
ORDER = ("what_has", "lacks_what", "has_lacks", "what_lacks", "has_what", "lacks_has")
# one visual token for 16 × 16 pixels of 64 × 64, and each sees all others
PICTURE = {"patch_size": 8, "window_size": 64}


def get_config(form: str = "full") -> ConfigDict:
    config = load_config(
        pathlib.Path(__file__).with_name("testbed.py"), "small" if form == "small" else "first"
    )
    config.sequence = tuple(f"{SUITE}:{task}" for task in ORDER)
    config.base.suite = SUITE
    config.base.size = {"depth": 3, **PICTURE}
    config.data.prompt_lengths = (36,)
    config.data.patch_slots = (64,)
    if form == "small":
        config.sequence = config.sequence[:2]
        config.base.size = {"depth": 1, "width": 32, "mlp_width": 48, **PICTURE}
    else:
        config.data.validation_count = 192
        config.data.test_count = 384
    return config
