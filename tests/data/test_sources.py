"""Every kind of source, from files that the library of its own has written."""

import concurrent.futures
import io
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.records import load_images
from rdbcl_jax.data.sources import open_source, tables

COUNT = 7


def png(red):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count=COUNT):
    return [
        {"question": f"Wie groß, {i}?", "answer": str(i), "image": {"bytes": png(i), "path": None}}
        for i in range(count)
    ]


def check(source, numbers=range(COUNT)):
    """The records of a source are those rows, in order, each with its picture."""
    found = load_records(source, task="t")
    assert [(r.prompt, r.answer) for r in found] == [(f"Wie groß, {i}?", str(i)) for i in numbers]
    reds = [load_images(record)[0].getpixel((0, 0))[0] for record in found]
    assert reds == [*numbers] and len({record.id for record in found}) == len(found)
    return found


# --- JSON ----------------------------------------------------------------------------------------


def plain_rows(count=3):
    return [{"prompt": f'"{i}" [{{', "answer": f"\\{i}", "of": {"a": [{}]}} for i in range(count)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "shape",
    [
        lambda rows: rows,
        lambda rows: {"info": {"data": [1]}, "data": rows, "more": [[]]},
        lambda rows: {f"q-{i}": row for i, row in enumerate(rows)},
    ],
    ids=["list", "data", "ids"],
)
def test_json_files_of_the_shapes_that_are_published(tmp_path, shape, indent):
    path, written = tmp_path / "data.json", shape(plain_rows())
    path.write_text("\ufeff" + json.dumps(written, indent=indent))
    found = load_records(path, task="t")
    assert [(r.prompt, r.answer, r.columns) for r in found] == [
        (row["prompt"], row["answer"], {"of": row["of"]}) for row in plain_rows()
    ]
    keyed = isinstance(written, dict) and "data" not in written
    assert found[2].id == ("q-2" if keyed else "data.json:2")
    assert found[2].where == f"{path}, row 2"


def test_json_files_that_hold_lines(tmp_path):
    text = "\n".join(map(json.dumps, plain_rows()))
    for name in ("data.json", "data.jsonl"):
        (tmp_path / name).write_text(text + "\n\n")
        assert [r.answer for r in load_records(tmp_path / name, task="t")] == ["\\0", "\\1", "\\2"]


@pytest.mark.parametrize(
    "text,message",
    [
        ('[{"a": 1}, {"a"', "cut off after row 0"),
        ('[{"a": 1}, 7, {"a": 1}]', "row 1: expected an object, found '7,?'"),
        ('[{"a": 1}, 7]', "row 1: expected an object, found '7'"),
        ('[{"a": 1} {"a": 1}]', "row 1: expected an object"),
        ('["a", "b"]', "row 0: expected an object"),
        ('{"a": {"b": 1}, "c": 3}', "row 1: expected an object, found '\"c\": 3'"),
        ('{"images": [{}], "annotations": [{}]}', r'expected a list of objects, \{"data"'),
        ('"text"', "expected a list of objects"),
        (
            '[{"a": 1}]\n[{"a": 2}]',
            r"found '\[\{\"a\": 2\}\]' behind its list of rows, expected one",
        ),
        ('[{"a": 1}] {"a": 2}', "behind its list of rows, expected one list"),
        ('{"a": {"b": 1}} {"c": {"b": 1}}', "behind its list of rows, expected one list"),
        ('{"data": [{"a": 1}], "test": [{"a": 2}]}', "behind its list of rows, expected one list"),
        ('{"data": [{"a": 1}], "test"', "cut off behind its rows"),
        ("[[1], [2]]", "row 0: expected an object, found \\[1\\]"),
        ('[{"a": 1, "answer": 3, "answer": 4}]', r'row 0: not JSON \("answer" is given twice\)'),
        ('{"a": {"b": 1, "c": {"d": 1, "d": 1}}}', r'not JSON \("d" is given twice\)'),
        ("[]", "holds no records"),
        ("", "holds no records"),
    ],
)
def test_json_files_that_hold_no_rows(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=rf"data\.json.*{message}"):
        load_records(tmp_path / "data.json", task="t")


def test_where_rows_of_json_are_is_all_that_is_held(tmp_path):
    long = {"prompt": "x" * 10_000, "answer": "\\" * 10_000}
    (tmp_path / "data.json").write_text(json.dumps([long] * 300))
    source = open_source(str(tmp_path / "data.json"))
    assert len(source) == 300 and source[299].columns == long
    held = sum(sys.getsizeof(value) for value in vars(source).values())
    assert held < 20_000


# --- Arrow and Parquet ---------------------------------------------------------------------------


def test_row_groups_are_read_when_a_row_is_asked_for(tmp_path, monkeypatch):
    path, read = tmp_path / "data.parquet", []
    pq.write_table(pa.Table.from_pylist(rows(12)), path, row_group_size=3)
    source, own = open_source(str(path)), tables.ParquetRows.read
    monkeypatch.setattr(
        tables.ParquetRows, "read", lambda self, group: read.append(group) or own(self, group)
    )
    monkeypatch.setattr(tables, "HELD_BYTES", 2.5 * own(source, 0).nbytes)
    assert len(source) == 12 and not read
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [*pool.map(source.__getitem__, [7, 6, 8, 7])]
    assert [row.columns["answer"] for row in found] == ["7", "6", "8", "7"] and read == [2]
    assert [source[i].id for i in (0, 8, 2)] == [
        "data.parquet:0",
        "data.parquet:8",
        "data.parquet:2",
    ]
    assert read == [2, 0]
    assert source[11] and source[8]
    assert read == [2, 0, 3, 2]  # two are held


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    path = tmp_path / "data.parquet"
    for answer in ("one", "two"):
        pq.write_table(pa.Table.from_pylist([{"question": "?", "answer": answer}]), path)
        assert load_records(path, task="t")[0].answer == answer
    image = {"path": path.name, "row": 0, "column": "image"}
    row = {"prompt": "?", "answer": "x", "image": image}
    (tmp_path / "refers.jsonl").write_text(json.dumps(row))
    for red in (1, 2):
        pq.write_table(pa.Table.from_pylist([{"image": png(red)}]), path)
        (record,) = load_records(tmp_path / "refers.jsonl", task="t")
        assert load_images(record)[0].getpixel((0, 0))[0] == red


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "arrow"])
def test_a_file_that_is_written_over_while_it_is_read(tmp_path, suffix):
    """By a longer one, or by one that has moved: rows would be others than were checked."""

    def write(rows):
        table = pa.Table.from_pylist(rows)
        if suffix == "parquet":
            pq.write_table(table, path, row_group_size=10)
        elif suffix == "arrow":
            pyarrow.feather.write_feather(table, path)
        else:
            path.write_text(
                json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
            )

    path = tmp_path / f"data.{suffix}"
    plain = [{"prompt": row["prompt"], "answer": row["answer"]} for row in plain_rows(30)]
    write(plain)
    source = open_source(str(path))
    assert source[2].columns["answer"] == "\\2"
    path.unlink()  # what is mapped of it stays
    write(plain[10:])
    row = source[20]
    assert not row.columns and row.where.startswith(str(path))
    assert "the file has changed since it was opened (now " in row.problem
    path.unlink()
    assert "now gone" in source[21].problem


def test_rows_of_files_of_one_name(tmp_path):
    """Which have no ids of their own, are told apart by their folders."""
    for folder in ("a", "b/c", "."):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "train.jsonl").write_text(json.dumps(plain_rows(1)[0]))
    found = load_records(tmp_path / "*/train.jsonl", task="t")
    assert [record.id for record in found] == ["train.jsonl:1"]
    (tmp_path / "b/train.jsonl").write_text(json.dumps(plain_rows(1)[0]))
    found = load_records(tmp_path / "*/train.jsonl", task="t")
    assert [record.id for record in found] == ["a/train.jsonl:1", "b/train.jsonl:1"]


def test_a_row_group_that_is_too_large_to_be_read_for_a_row(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "data.parquet")
    monkeypatch.setattr(tables, "LARGEST_GROUP", 100)
    with pytest.raises(ValueError, match=r"a row group of .* MB.*row_group_size=100"):
        open_source(str(tmp_path / "data.parquet"))


def test_a_damaged_row_group_costs_its_own_rows(tmp_path):
    path = tmp_path / "data.parquet"
    noise = np.random.default_rng(0)
    written = [{"question": "?", "answer": noise.bytes(2000).hex()} for _ in range(9)]
    pq.write_table(pa.Table.from_pylist(written), path, row_group_size=3, use_dictionary=False)
    whole = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(1)
    whole[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(whole)
    problems = []
    found = load_records(path, task="t", problems=problems)
    assert [record.where[-1] for record in found] == [*"012678"]
    assert len(problems) == 3 and "row 3: its row group, 1 from 0 on, cannot be read" in problems[0]


def test_a_column_of_an_unknown_time_zone_costs_its_own_rows(tmp_path):
    table = pa.table({"question": ["when?"] * 2, "answer": ["3"] * 2})
    zone = pa.array([0, None], pa.timestamp("s", tz="Mars/Phobos"))
    pq.write_table(table.append_column("taken", zone), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"row 0.*column 'taken' cannot be read"):
        load_records(tmp_path / "data.parquet", task="t")


def test_feather_files(tmp_path):
    table = pa.Table.from_pylist(rows())
    pyarrow.feather.write_feather(table, tmp_path / "data.arrow", compression="lz4")
    check(tmp_path / "data.arrow")
    (tmp_path / "data.arrow").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"data\.arrow: no Arrow file, or a damaged one"):
        open_source(str(tmp_path / "data.arrow"))


# --- the `datasets` library ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What `datasets` writes: directories of `save_to_disk`, and a repository."""
    datasets.disable_progress_bars()
    features = {name: datasets.Value("string") for name in ("question", "answer")}
    features = datasets.Features(features | {"image": datasets.Image()})
    data = datasets.Dataset.from_list(rows(), features=features)
    folder = tmp_path_factory.mktemp("hf")
    data.save_to_disk(folder / "one", num_shards=2)
    two = datasets.DatasetDict({"train": data, "test": data.select([5, 2])})
    two.save_to_disk(folder / "several")
    (folder / "repository/data").mkdir(parents=True)
    for number in range(2):
        data.shard(2, number, contiguous=True).to_parquet(
            folder / f"repository/data/train-0000{number}-of-00002.parquet"
        )
    two["test"].to_parquet(folder / "repository/data/test-00000-of-00001.parquet")
    return folder


def test_directories_of_save_to_disk(written):
    check(written / "one")
    check(f"{written}/several:train")
    check(f"{written}/several:test", [5, 2])
    check(f"{written}/several/test", [5, 2])
    with pytest.raises(ValueError, match=r"has several splits; expected .*several:train, .*:test"):
        open_source(f"{written}/several")
    with pytest.raises(ValueError, match=r"has no split 'dev'; expected .*several:train"):
        open_source(f"{written}/several:dev")


def test_copies_of_repositories(written, tmp_path):
    found = check(f"{written}/repository:train")
    assert found[4].where.endswith("train-00001-of-00002.parquet, row 0")
    check(f"{written}/repository:test", [5, 2])
    for name in ("repository/data", "repository/data/train-*.parquet"):
        check(f"{written}/{name}" + (":train" if name.endswith("data") else ""))
    card = """---
configs:
- config_name: small
  data_files:
  - split: dev
    path: "data/test-*"
- config_name: large
  data_files: ["data/train-*"]
---
"""
    (tmp_path / "data").symlink_to(written / "repository/data")
    (tmp_path / "README.md").write_text(card)
    check(f"{tmp_path}/large:train")
    check(f"{tmp_path}/large")
    check(f"{tmp_path}/small:dev", [5, 2])
    with pytest.raises(ValueError, match=r"several configs; expected one of .*/small, .*/large"):
        open_source(f"{tmp_path}:dev")
    with pytest.raises(FileNotFoundError, match="no file or directory"):
        open_source(f"{tmp_path}/other:dev")
    (tmp_path / "README.md").write_text("---\nconfigs: [}\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: its header cannot be read"):
        open_source(f"{tmp_path}:train")
    (tmp_path / "README.md").write_text(card.replace("large", "default"))
    check(f"{tmp_path}:train")


def test_directories_of_files_side_by_side(tmp_path):
    (tmp_path / "note.txt").write_text("no data")
    with pytest.raises(ValueError, match=r"expected files of one of \.jsonl.*found \['note.txt'\]"):
        open_source(str(tmp_path))
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "answer": name}))
    assert [record.answer for record in load_records(tmp_path, task="t")] == ["a", "b"]


def test_files_called_after_splits_are_splits(tmp_path):
    for name in ("train", "validation", "test"):
        row = {"prompt": name, "answer": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    (record,) = load_records(f"{tmp_path}:train", task="t")
    assert record.answer == "train"
    with pytest.raises(ValueError, match=r"has several splits; expected .*:test, .*:train"):
        open_source(str(tmp_path))
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "a", "answer": "a"}))
    assert len(open_source(str(tmp_path))) == 4


@pytest.mark.parametrize(
    "shards,message",
    [
        (["0-of-00003"], "1 of 3 shards of 'train', expected train-00001-of-00003, train-00002"),
        (["0-of-00001", "0-of-00002", "1-of-00002"], "different times, train-00000-of-00001"),
        (["0-of-00001-ab", "0-of-00001-cd"], "different times, train-00000-of-00001-ab"),
    ],
)
def test_shards_that_are_no_whole_split(tmp_path, shards, message):
    for shard in shards:
        row = json.dumps({"prompt": "a", "answer": "a"})
        (tmp_path / f"train-0000{shard}.jsonl").write_text(row)
    with pytest.raises(ValueError, match=message):
        open_source(f"{tmp_path}:train")


@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl"])
def test_files_and_patterns_have_no_splits(tmp_path, name):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "answer": "a"}))
    with pytest.raises(ValueError, match=r"found the split 'test' behind a file or a pattern"):
        open_source(f"{tmp_path / name}:test")


def test_data_sets_through_the_library(written, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    check(f"hf:{written}/repository:train")
    check(f"hf:{written}/repository:train[2:5]", [2, 3, 4])
    with pytest.raises(ValueError, match=r"'hf:nobody/nothing:train' cannot be read .*cache"):
        open_source("hf:nobody/nothing:train")
    with pytest.raises(ValueError, match="expected hf:NAME"):
        open_source("hf:nobody/nothing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'rdbcl_jax\[hf\]'"):
        open_source("hf:nobody/nothing:train")


# --- TensorFlow Datasets -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    class Counts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "question": tfds.features.Text(),
                "answer": np.int64,
                "image": tfds.features.Image(shape=(None, None, 3)),
                "at": tfds.features.Sequence(np.float32),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, row in enumerate(rows()):
                image = io.BytesIO(row["image"]["bytes"])
                yield i, row | {"answer": i, "image": image, "at": [0.1]}

    folder = tmp_path_factory.mktemp("tfds")
    Counts(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds(prepared):
    """In a process of its own: it would find TensorFlow where another test has imported it."""
    code = """
import json, sys
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.records import load_images
found = load_records("tfds:counts/train", task="t", verifier="number")
assert "tensorflow" not in sys.modules
images = [load_images(record)[0].getpixel((0, 0))[0] for record in found]
print(json.dumps([[r.id, r.prompt, r.answer, r.columns] for r in found] + [images]))
for name in ("tfds:counts/test", "tfds:nothing/train"):
    try:
        load_records(name, task="t")
    except ValueError as error:
        print(error)
"""
    environment = {**os.environ, "TFDS_DATA_DIR": str(prepared)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    found, *errors = done.stdout.splitlines()
    *found, images = json.loads(found)
    assert sorted(images) == sorted(int(answer) for _, _, answer, _ in found) == [*range(COUNT)]
    assert sorted(prompt for _, prompt, _, _ in found) == [f"Wie groß, {i}?" for i in range(COUNT)]
    assert found[0][0] == "counts/train:0" and found[0][3] == {"at": [0.1]}
    assert "found the splits train; name one of them, or prepare it: tfds build" in errors[0]
    assert "tfds build nothing --file_format=array_record" in errors[1]
    assert len(errors) == 2


def test_tfds_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'rdbcl_jax\[tfds\]'"):
        open_source("tfds:digits/train")
    with pytest.raises(ValueError, match="expected tfds:name/split"):
        open_source("tfds:digits")
