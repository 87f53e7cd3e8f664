"""Sizes of batches that are chosen from the data, and may grow."""

import dataclasses
import json

import pytest

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data import check
from rdbcl_jax.data.sizes import rung
from rdbcl_jax.toy import tiny
from rdbcl_jax.training.identity import differences, identity_of
from rdbcl_jax.training.setup import prepare
from tests.engine import small_config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(model, tmp_path, monkeypatch):
    monkeypatch.setenv("RDBCL_CACHE_DIR", str(tmp_path / "cache"))
    config = small_config()
    config.model.path = str(model)
    config.data.prompt_lengths = config.data.patch_slots = config.data.images_per_prompt = ()
    return config


def task_of(folder, *words):
    """A task whose questions have so many words each."""
    rows = [{"prompt": "sum " * count, "answer": "4"} for count in words]
    path = folder / f"{len(words)}-{max(words)}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return dict.fromkeys(("train", "validation", "test"), str(path))


def test_rungs():
    sizes = [rung(size, 128) for size in (0, 128, 129, 257, 384, 385, 513, 769, 1025)]
    assert sizes == [128, 128, 256, 384, 384, 512, 768, 1024, 1536]
    assert [rung(size, 1) for size in range(8)] == [1, 1, 2, 3, 4, 6, 6, 8]
    assert [*{rung(size, 128) for size in range(10_000)}] == [*{rung(s, 128) for s in range(9999)}]


def test_sizes_are_those_that_records_need(config, tmp_path, monkeypatch):
    config.sequence, config.tasks = ("mine", "sum"), {"mine": task_of(tmp_path, 10, 300, 120, 310)}
    for _ in range(2):  # measured, and known again
        data = prepare(RunConfig.of(config)).config.data
        assert data.prompt_lengths == (128, 384)
        assert (data.patch_slots, data.images_per_prompt) == ((128,), (1,))
    config.data.prompt_lengths = (320,)
    with monkeypatch.context() as patch:
        patch.setattr(check, "_read", None)  # what was measured is known under other sizes
        assert prepare(RunConfig.of(config)).config.data.prompt_lengths == (320,)
    config.data.prompt_lengths = (200,)
    with pytest.raises(ValueError, match=r"line 2.*at most 200 allowed; enlarge data\.prompt_len"):
        prepare(RunConfig.of(config))


def test_headers_do_not_tell_how_long_prompts_are(config, tmp_path):
    config.sequence, config.tasks = ("mine",), {"mine": task_of(tmp_path, 10)}
    config.data.check = "headers"
    with pytest.raises(ValueError, match=r'config\.data\.prompt_lengths is empty.* or "full"'):
        prepare(RunConfig.of(config))
    config.data.prompt_lengths = config.data.patch_slots = (32,)
    assert prepare(RunConfig.of(config)).config.data.images_per_prompt == (1,)


def test_a_run_that_goes_on_may_add_sizes(config, tmp_path):
    config.sequence, config.tasks = ("mine",), {"mine": task_of(tmp_path, 10, 300)}
    first = prepare(RunConfig.of(config))
    saved = identity_of(first)

    def changed(**sizes):
        fields = {f"data.{name}": size for name, size in sizes.items()}
        setup = dataclasses.replace(first, config=first.config.changed(fields))
        return differences(saved, setup, saved)

    assert changed() == changed(prompt_lengths=(128, 384, 512), images_per_prompt=(1, 2)) == []
    assert changed(patch_slots=(64, 128)) == []
    (found,) = changed(prompt_lengths=(384, 512))
    assert found == "data.prompt_lengths: [128, 384] in the workdir, [384, 512] now"
    config.sequence = ("mine", "more")
    config.tasks["more"] = task_of(tmp_path, 10, 500)
    longer = prepare(RunConfig.of(config))
    assert longer.config.data.prompt_lengths == (128, 384, 512)
    assert differences(saved, longer, identity_of(longer)) == []
