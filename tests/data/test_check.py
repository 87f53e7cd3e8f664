"""Records are read as training will read them, long before it does, and known again."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data import check
from rdbcl_jax.data.check import Check
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.models import read_processor
from rdbcl_jax.rewards.verifiers import Verifier
from rdbcl_jax.toy import tiny
from rdbcl_jax.training.check import check_all
from rdbcl_jax.training.identity import differences, identity_of
from rdbcl_jax.training.run import train
from rdbcl_jax.training.setup import prepare
from tests.engine import small_config


class Counting(PromptEncoder):
    """Notes what it encodes."""

    def encode(self, records, *args, **kwargs):
        self.seen = [*getattr(self, "seen", ()), *(record.id for record in records)]
        return super().encode(records, *args, **kwargs)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_tiny_model(tmp_path_factory.mktemp("tiny"))


def jpeg(size=(16, 16), cut=None):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[:cut]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RDBCL_CACHE_DIR", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    for name, raw in {
        "good": jpeg(),
        "cut": jpeg((64, 64), cut=-900),
        "long": jpeg((4, 1000)),
        "large": jpeg((60, 60)),
    }.items():
        (data / f"{name}.jpg").write_bytes(raw)
    return data


def write(folder, *rows, name="data.jsonl"):
    rows = [{"prompt": "sum 4", "answer": "4", **row} for row in rows]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


BAD = {
    "cut.jpg": ({"image": "cut.jpg"}, "body cannot be decoded"),
    "long.jpg": ({"image": "long.jpg"}, "aspect ratio must be smaller than 200"),
    "large.jpg": ({"image": "large.jpg"}, "of patch_slots, at most 32 allowed"),
    "wordy": ({"prompt": "sum " * 120}, "of prompt_lengths, at most 100 allowed"),
    "many": ({"images": ["good.jpg"] * 2}, "of images_per_prompt, at most 1 allowed"),
    "unread": ({"answer": None}, "expected an answer"),
}


def config_of(model, path):
    config = small_config()
    config.model.path = str(model)
    config.sequence = ("mine",)
    config.tasks = {"mine": dict.fromkeys(("train", "validation", "test"), str(path))}
    config.data.prompt_lengths, config.data.images_per_prompt = (100,), (1,)
    return config


def test_all_that_is_wrong_is_listed_with_file_and_line(folder, model):
    path = write(folder, {"image": "good.jpg"}, *(row for row, _ in BAD.values()), {})
    found = check_all(config_of(model, path))
    splits = ("train", "validation", "test")
    assert found.counts == {f"mine/{split}": 2 for split in splits}
    problems = found.problems
    assert len(problems) == len(BAD)
    assert found.notes == [
        f"task 'mine': 2 of the 2 records of {split} are in train, too (the same question and "
        "pictures); what is measured on them is memory"
        for split in splits[1:]
    ]
    wanted = {f"{path}, line {n}": text for n, (_, text) in enumerate(BAD.values(), start=2)}
    for problem in problems:
        where = problem.partition(": ")[0].partition(" (")[0]
        assert wanted.pop(where) in problem and "\n" not in problem


def test_without_a_config_images_are_decoded(folder):
    path = write(folder, {"image": "good.jpg"}, *(row for row, _ in BAD.values()), {})
    found = check_all(None, [str(path), str(folder / "none.jsonl")])
    problems = found.problems
    assert found.counts == {str(path): 6} and len(problems) == 3 and not found.notes
    assert "body cannot be decoded" in problems[0] and "expected an answer" in problems[1]
    assert "no file at" in problems[2]


def test_without_a_config_pictures_may_lie_anywhere_and_a_run_is_told_where(folder):
    (folder / "prepared").mkdir()
    path = write(folder, {"image": "../good.jpg"}, name="prepared/data.jsonl")
    found = check_all(None, [str(path)])
    assert found.counts == {str(path): 1} and not found.problems
    note = f"{path}: pictures lie in {folder}; a run is to name it, as config.data.image_root"
    assert found.notes == [note]


@pytest.mark.parametrize("level", ["full", "headers"])
def test_records_that_are_learned_and_tested_are_counted(folder, model, level):
    """By what they ask: question and pictures, whatever they are called; also when they are known
    again."""
    (folder / "same.jpg").write_bytes((folder / "good.jpg").read_bytes())
    train = write(folder, {"image": "good.jpg"}, {}, {"prompt": "sum 5"}, name="train.jsonl")
    same = "good.jpg" if level == "headers" else "same.jpg"
    asked = {"image": same, "id": "x", "answer": "5"}
    test = write(folder, asked, {"prompt": "sum 6"}, name="test.jsonl")
    config = config_of(model, train)
    config.tasks.mine.update(test=str(test), validation=str(test))
    config.data.check = level
    for _ in range(2):
        notes = prepare(RunConfig.of(config)).notes
        counts = [note.partition(" records of ")[0] for note in notes]
        assert counts == ["task 'mine': 1 of the 2"] * 2
    config.tasks.mine.update(test=str(train))
    _, note = prepare(RunConfig.of(config)).notes
    assert note.startswith("task 'mine': 3 of the 3 records of test are in train")


def test_nothing_is_made_while_a_record_is_wrong(folder, model, tmp_path):
    for row, text in BAD.values():
        path = write(folder, {"image": "good.jpg"}, row)
        with pytest.raises(ValueError, match=f"line 2.*{text}"):
            train(config_of(model, path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    own = config_of("", path)  # of the base that is still to be made
    with pytest.raises(ValueError, match=r"line 2.*expected an answer"):
        train(own, tmp_path / "run")
    write(folder, {}, BAD["wordy"][0])
    with pytest.raises(ValueError, match=r"line 2.*of prompt_lengths"):
        train(own, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_records_are_known_by_their_content(folder, model):
    words, processor = AutoTokenizer.from_pretrained(model), read_processor(model)
    rows = [{"id": "a", "image": "good.jpg"}, {"id": "b"}, {"id": "c", "image": "cut.jpg"}]
    path = write(folder, *rows)

    def seen(key="k", **options):
        encoder = Counting(words, processor, **options)
        how, problems = Check("full", lambda: encoder, lambda: key), []
        found = load_records(path, task="t", check=how, problems=problems)
        assert [record.id for record in found] == ["a", "b"]
        assert len(problems) == 1 and "body cannot be decoded" in problems[0]
        return {*getattr(encoder, "seen", ())[1:]}  # the first sets the tokenizer up

    assert seen() == {"a", "b", "c"}
    assert seen() == set()  # no file has changed
    assert seen("other") == {"a", "b", "c"} == seen("") == seen("")
    path.touch()
    assert seen() == {"c"}
    (folder / "good.jpg").rename(folder / "moved.jpg")
    write(folder, {"id": "a", "image": "moved.jpg"}, {"id": "b", "prompt": "sum 5"}, rows[2])
    assert seen() == {"b", "c"}
    (folder / "moved.jpg").write_bytes(jpeg((24, 16)))
    assert seen() == {"a", "c"}
    cache = folder.parent / "cache"
    for file in [*cache.glob("*/*")]:
        file.write_bytes(file.read_bytes()[:-5])  # cut short
    assert "c" in seen()
    for file in [*cache.glob("*/*")]:
        file.unlink()
        file.mkdir()  # cannot be read or written: a help and no more
    assert seen() == seen() == {"a", "b", "c"}


def own_verifier(answer, gold):
    return float(answer == gold)


def picky(gold):
    if gold == "5":
        raise ValueError("not five")
    return gold


own = Verifier("own", picky, own_verifier)


def test_verifiers_of_ones_own_are_asked_again(folder, model):
    """Their code may change without a sign."""
    path = write(folder, {}, {"answer": "5"})
    how = Check("full", lambda: PromptEncoder(*parts), lambda: "k")
    parts = AutoTokenizer.from_pretrained(model), read_processor(model)
    for _ in range(2):
        assert len(load_records(path, task="t", check=how)) == 2
    assert len([*(folder.parent / "cache/sources").iterdir()]) == 1
    with pytest.raises(ValueError, match="not five"):
        load_records(path, task="t", verifier="tests.data.test_check:own", check=how)
    assert len([*(folder.parent / "cache/sources").iterdir()]) == 1


def test_headers_alone(folder, model):
    """Decoded is nothing and measured is nothing, so that what only those would find is found when
    its turn comes."""
    config = config_of(model, write(folder, *(row for row, _ in BAD.values())))
    config.data.check = "headers"
    found = check_all(config)
    assert sum(found.counts.values()) == 3 * 5
    (problem,) = found.problems
    assert "expected an answer" in problem


def test_pictures_in_files_are_told_by_what_they_hold(folder, model):
    config = config_of(model, write(folder, {"image": "good.jpg"}))
    config.training.steps = 1

    def held(level):
        config.data.check = level
        return identity_of(prepare(RunConfig.of(config)))

    full, headers = held("full"), held("headers")
    other = np.asarray(Image.open(io.BytesIO(jpeg())))[::-1]
    buffer = io.BytesIO()
    for quality in range(5, 100):  # of the same size in bytes
        buffer = io.BytesIO()
        Image.fromarray(other).save(buffer, "JPEG", quality=quality)
        if len(buffer.getvalue()) <= len(jpeg()):
            padded = buffer.getvalue() + b"\0" * (len(jpeg()) - len(buffer.getvalue()))
    (folder / "good.jpg").write_bytes(padded)
    setup = prepare(RunConfig.of(config))
    assert differences(full, setup, held("headers")) == []
    assert differences(headers, setup, held("full")) == []
    (found, *_) = differences(full, setup, held("full"))
    assert found.startswith("records of mine/train: 1 records, ") and "pictures" in found


def test_a_long_check_says_how_far_it_is(monkeypatch, capsys, folder):
    path = write(folder, {}, {})
    load_records(path, task="mine")
    assert not capsys.readouterr().err  # not worth a line
    monkeypatch.setattr("rdbcl_jax.data.waiting.MANY", 2)
    load_records(path, task="mine")
    assert capsys.readouterr().err == "checking 'mine': 2 records\n"  # at once
    monkeypatch.setattr("rdbcl_jax.data.waiting.SAYS_EVERY", -1.0)
    load_records(path, task="mine")
    assert "checking 'mine': 1 of 2 records\n" in capsys.readouterr().err


def test_where_digests_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("RDBCL_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert check.cache_folder() == tmp_path / "rdbcl_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check.cache_folder() == tmp_path / ".cache/rdbcl_jax"


def test_records_that_are_wrong_can_be_skipped(folder, model, tmp_path):
    path = write(folder, {"image": "good.jpg"}, *(row for row, _ in BAD.values()), {})
    config = config_of(model, path)
    config.data.on_bad_record = "skip"
    setup = prepare(RunConfig.of(config))
    (task,) = setup.tasks
    assert [r.where for r in task.train] == [f"{path}, line 1", f"{path}, line 8"]
    assert len(setup.left_out) == 3 * len(BAD)
