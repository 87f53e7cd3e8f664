"""`rdbcl prepare` on published data sets in the files that are downloaded."""

import collections
import itertools
import json
import runpy
import shutil

import pytest

from rdbcl_jax.data import preparing
from rdbcl_jax.data.preparing import prepare
from rdbcl_jax.data.published import DATA_SETS
from rdbcl_jax.data.records import load_images
from rdbcl_jax.data.tasks import load_sequence
from rdbcl_jax.rewards.scoring import score
from tests.data import published_files
from tests.engine import small_config


def loaded(prepared):
    """What a config with the fragment reads."""
    config = small_config()
    runpy.run_path(str(prepared.fragment))["add_tasks"](config)
    return {task.name: task for task in load_sequence(config)}


def widths(records):
    return [[image.size[0] - 32 for image in load_images(record)] for record in records]


# of each split how many records, and one of train: verifier, answer, pictures
EXPECTED = {
    "scienceqa": ((4, 4, 4), ("choice", "A", [0])),
    "textvqa": ((5, 1, 6), ("vqa", "stop", [1])),
    "vizwiz": ((10, 1, 1), ("vqa", "unanswerable", [1])),
    "textvqa_original": ((5, 1, 6), ("vqa", "stop", [0])),
    "vizwiz_original": ((5, 1, 6), ("vqa", "a mug", [1])),
    "gqa": ((5, 5, 5), ("exact", "yes", [0])),
    "gqa_original": ((3, 3, 3), ("exact", "yes", [0])),
    "geometry3k": ((3, 3, 3), ("math", r"\frac{1}{2}", [0])),
    "pathvqa": ((3, 3, 3), ("exact", "yes", [0])),
    "superclevr": ((2, 2, 1), ("exact", "2", [0])),
    "clevr_math": ((3, 3, 3), ("number", "0", [0])),
    "iconqa": ((2, 1, 3), None),
    "arxivqa": ((10, 1, 1), ("choice", "B", [0])),
    "arxivqa_vidore": ((1, 1, 1), None),
    "flickr30k": ((10, 1, 1), None),
    "imagenet_r": ((14, 1, 1), None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_data_set_becomes_records(tmp_path, name):
    getattr(published_files, name)(tmp_path / "raw")
    known = name if name in DATA_SETS else name.rpartition("_")[0]
    prepared = prepare(known, tmp_path / "raw", tmp_path / "made")
    counts, first = EXPECTED[name]
    assert prepared.problems == []
    assert tuple(prepared.counts[known].values()) == counts
    task = loaded(prepared)[known]
    assert (len(task.train), len(task.validation), len(task.test)) == counts
    everything = [*task.train, *task.validation, *task.test]
    assert len({record.columns["source"] for record in everything}) == sum(counts)
    pictures = widths(everything)  # every one can be read where it is
    if first:
        found = [
            (r.verifier, r.answer, shown) for r, shown in zip(task.train, pictures, strict=False)
        ]
        assert first in found
    written = (tmp_path / "made").rglob("*.*")
    assert {file.suffix for file in written} == {".jsonl", ".py"}  # no pictures


def test_several_data_sets_in_one_config(tmp_path):
    config = small_config()
    for name in ("scienceqa", "gqa"):
        getattr(published_files, name)(tmp_path / "raw" / name)
        prepared = prepare(name, tmp_path / "raw" / name, tmp_path / "made")
        for _ in range(2):  # the second time changes nothing
            runpy.run_path(str(prepared.fragment))["add_tasks"](config)
    tasks = load_sequence(config)
    assert [task.name for task in tasks] == ["scienceqa", "gqa"]
    assert all(widths(task.test) for task in tasks)


def test_ucit(tmp_path):
    published_files.ucit(tmp_path / "raw")
    prepared = prepare("ucit", tmp_path / "raw", tmp_path / "made")
    assert prepared.problems == []
    assert set(map(tuple, (c.values() for c in prepared.counts.values()))) == {(11, 1, 3)}
    tasks = loaded(prepared)
    assert [*tasks] == [
        "imagenet_r", "arxivqa", "vizwiz_captions", "iconqa", "clevr_math", "flickr30k"
    ]  # fmt: skip
    assert tasks["arxivqa"].test[0].verifier == "choice"
    captioned = tasks["flickr30k"].test[1]
    assert captioned.answers == tuple(f"Caption {k} of 1." for k in range(5))
    assert captioned.verifier == "caption" and widths([captioned]) == [[1]]


def test_mllm_cl(tmp_path):
    published_files.mllm_cl(tmp_path / "raw")
    tasks = loaded(prepare("mllm_cl", tmp_path / "raw", tmp_path / "made"))
    assert [*tasks] == ["rs", "med", "ad", "sci", "fin"]
    record = tasks["med"].test[1]
    right = score([record], ["<think>seen</think><answer>Liver.</answer>"])
    assert right.accuracy == [1] and widths([record]) == [[1]]


def test_made_splits_are_the_same_again_and_share_no_picture(tmp_path):
    """Questions about one picture stay together, whatever order the files are in."""
    rows = [
        {"id": str(i), "image": f"images/{i % 20}.png", "conversations": [
            {"from": "human", "value": f"<image>\nQuestion {i}?"}, {"from": "gpt", "value": "x"}
        ]}
        for i in range(60)
    ]  # fmt: skip
    published_files.mllm_cl(tmp_path / "raw")
    for i in range(20):
        published_files.put(tmp_path / f"raw/RS/images/{i}.png", published_files.picture(i))
    made = []
    shutil.copytree(tmp_path / "raw", tmp_path / "elsewhere/raw")
    for place, raw, order in (("a", "raw", rows), ("elsewhere/b", "elsewhere/raw", rows[::-1])):
        published_files.put(tmp_path / raw / "RS/train.json", order)
        found = prepare("mllm_cl", tmp_path / raw, tmp_path / place).counts["rs"]
        assert found == {"train": 54, "validation": 6, "test": 3}
        made.append(split_of(tmp_path / place / "rs"))
    assert made[0] == made[1]
    assert all(len(splits) == 1 for splits in made[0].values())
    other = prepare("mllm_cl", tmp_path / "raw", tmp_path / "c", seed=1)
    assert split_of(other.fragment.parent / "rs") != made[0]


def test_a_large_group_is_no_made_split():
    """45 of 100 rows show one picture: wherever it comes in the order, splits have their sizes."""
    rows = [((b"same" if i < 45 else b"%d" % i,), "") for i in range(100)]
    for seed in range(20):
        (splits,) = preparing._splits_of({preparing.ALL: rows}, seed).values()
        assert collections.Counter(splits) == {"train": 80, "test": 10, "validation": 10}
    (splits,) = preparing._splits_of({preparing.ALL: rows[:90]}, 0).values()
    assert splits[:45] == ["train"] * 45


@pytest.mark.parametrize(
    "shown,message",
    [
        (lambda i: (i, i + 20 + i % 2), ""),
        (lambda i: (i // 3, i // 3 + 20) if i % 3 else (i // 3 + 20,), ""),
        (lambda i: (i, i + 1) if i < 20 else (i + 2,), ""),  # most are connected
        (lambda i: (40, i), "connect 30 of 30 records, and no others are left for validation"),
    ],
)
def test_made_splits_share_none_of_several_pictures(tmp_path, shown, message):
    rows = [
        {"id": str(i), "image": [f"images/{n}.png" for n in shown(i)], "conversations": [
            {"from": "human", "value": f"Question {i}?"}, {"from": "gpt", "value": "x"}
        ]}
        for i in range(30)
    ]  # fmt: skip
    published_files.mllm_cl(tmp_path / "raw")
    for i in range(60):
        published_files.put(tmp_path / f"raw/RS/images/{i}.png", published_files.picture(i))
    published_files.put(tmp_path / "raw/RS/train.json", rows)
    if message:
        with pytest.raises(ValueError, match=message):
            prepare("mllm_cl", tmp_path / "raw", tmp_path / "a")
        return
    prepare("mllm_cl", tmp_path / "raw", tmp_path / "a")
    splits = split_of(tmp_path / "a/rs")
    assert all(len(found) == 1 for found in splits.values())
    assert {*itertools.chain(*splits.values())} == {"train", "validation"}


def split_of(folder):
    """Of each picture of learned questions, the splits that show it."""
    found = collections.defaultdict(set)
    for split in ("train", "validation"):
        for line in (folder / f"{split}.jsonl").read_text().splitlines():
            for picture in json.loads(line)["images"]:
                found[picture].add(split)
    return found


@pytest.mark.parametrize("name", ["gqa", "scienceqa", "superclevr"])
def test_files_may_be_links_to_where_they_are(tmp_path, name):
    """As in the cache of the hub, or with pictures on another disk."""
    getattr(published_files, name)(tmp_path / "disk")
    for file in (tmp_path / "disk").rglob("*.*"):
        link = tmp_path / "raw" / file.relative_to(tmp_path / "disk")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    prepared = prepare(name, tmp_path / "raw", tmp_path / "made")
    assert widths(loaded(prepared)[name].train)


def test_what_is_to_be_fetched(tmp_path):
    with pytest.raises(ValueError, match=r"fetch ScienceQA-IMG/train-\*.parquet, .* of lmms-lab/"):
        prepare("scienceqa", tmp_path, tmp_path / "made")
    published_files.scienceqa(tmp_path)
    (tmp_path / "ScienceQA-IMG/test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"fetch ScienceQA-IMG/test-\*.parquet of lmms-lab/[\w]+$"):
        prepare("scienceqa", tmp_path, tmp_path / "made")
    published_files.textvqa(tmp_path / "textvqa")
    whole = tmp_path / "textvqa/data/train-00000-of-00001.parquet"
    whole.rename(whole.with_name("train-00001-of-00003.parquet"))
    lacking = r"fetch data/train-00000-of-00003, data/train-00002-of-00003 of lmms-lab/textvqa"
    with pytest.raises(ValueError, match=lacking):
        prepare("textvqa", tmp_path / "textvqa", tmp_path / "made")
    published_files.gqa(tmp_path / "gqa")
    shutil.rmtree(tmp_path / "gqa/val_balanced_images")
    with pytest.raises(ValueError, match=r"fetch val_balanced_images/\*.parquet of lmms-lab/GQA$"):
        prepare("gqa", tmp_path / "gqa", tmp_path / "made")
    with pytest.raises(ValueError, match=r"no data set 'scienceqq'; there are .*scienceqa'\?"):
        prepare("scienceqq", tmp_path, tmp_path / "made")


def test_rows_that_are_wrong_are_left_out_and_listed(tmp_path):
    published_files.mllm_cl(tmp_path)
    (tmp_path / "RS/images/3.png").unlink()
    (tmp_path / "RS/images/4.png").write_bytes(b"no picture")
    prepared = prepare("mllm_cl", tmp_path, tmp_path / "made")
    missing, damaged = sorted(prepared.problems)
    assert "train.json, row 3: image 0: there is no such file" in missing
    assert "train.json, row 4: image 0: it cannot be read as a picture" in damaged
    assert sum(prepared.counts["rs"].values()) == 13
    shutil.rmtree(tmp_path / "Med/images")
    with pytest.raises(ValueError, match=r"of med, .* expected some in each split; the first of"):
        prepare("mllm_cl", tmp_path, tmp_path / "made")


def test_a_picture_that_gqas_files_lack(tmp_path):
    published_files.gqa(tmp_path)
    stored = [{"id": "n00", "image": published_files.stored(0)}]
    stored.append({"id": "n01", "image": {"bytes": b"nothing", "path": None}})
    folder = tmp_path / "train_balanced_images"
    published_files.table(folder / "train-00000-of-00001.parquet", {"image": "image"}, stored)
    prepared = prepare("gqa", tmp_path, tmp_path / "made")
    assert prepared.counts["gqa"]["train"] == 2
    assert all("there is no good picture 'n0" in problem for problem in prepared.problems)


def test_files_beside_the_rows_that_are_of_another_shape(tmp_path):
    published_files.gqa(tmp_path / "gqa")
    table = tmp_path / "gqa/train_balanced_images/train-00000-of-00001.parquet"
    published_files.table(table, {"image": "image"}, [{"image": published_files.stored(0)}])
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet, row 0: found .*image, e"):
        prepare("gqa", tmp_path / "gqa", tmp_path / "made")
    published_files.ucit(tmp_path / "ucit")
    captions = tmp_path / "ucit/instructions/VizWiz/val_coco_type_3000.json"
    for held in ("[]", '{"annotations": [{"image_id": 1}]}', '{"annotations": ["a mug"]}'):
        captions.write_text(held)
        with pytest.raises(ValueError, match=r"val_coco_type_3000\.json.* expected an"):
            prepare("ucit", tmp_path / "ucit", tmp_path / "made")
    published_files.imagenet_r(tmp_path)
    (tmp_path / "imagenet-r/README.txt").write_bytes("n01443537 pingüino".encode("latin-1"))
    with pytest.raises(ValueError, match=r"README\.txt: not UTF-8"):
        prepare("imagenet_r", tmp_path, tmp_path / "made")
