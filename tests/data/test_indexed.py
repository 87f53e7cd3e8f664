"""Records that are made when they are asked for, and what is held of them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdbcl_jax.data import indexed
from rdbcl_jax.data.check import digest_of
from rdbcl_jax.data.indexed import Joined, Records, only, verifiers_of
from rdbcl_jax.data.layouts import layout_of
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.pictures import OfRow
from rdbcl_jax.data.pipeline import batches
from rdbcl_jax.data.records import load_images, make_record
from rdbcl_jax.data.sources import open_source
from rdbcl_jax.sharding import RowShard


class Noting:
    """A source that notes what is read of it."""

    def __init__(self, source):
        self.source, self.files, self.version, self.read = source, source.files, "", []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, number):
        self.read.append(number)
        return self.source[number]


def jpeg(red):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def records(tmp_path):
    rows = [{"prompt": f"{i}", "answer": f"{i}", "image": jpeg(i)} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet", row_group_size=1)
    source = Noting(open_source(str(tmp_path / "data.parquet")))
    return Records(source, lambda row: make_record(row, "t", None, ()))


def test_a_record_is_read_when_it_is_asked_for(records):
    part = records[2:8:2]
    assert isinstance(part, Records) and len(records) == 12 and len(part) == 3
    assert not records.source.read
    assert [record.answer for record in part] == ["2", "4", "6"] and part[-1].prompt == "6"
    assert records.source.read == [2, 4, 6]
    with pytest.raises(IndexError):
        part[3]


def test_pictures_stay_in_their_rows(records, monkeypatch):
    (image,) = records[3].images
    assert image == OfRow(records[3].where, 0, len(jpeg(3)), image.read_bytes)
    assert str(image) == f"{len(jpeg(3))} bytes"
    assert load_images(records[3])[0].getpixel((0, 0)) == (3, 0, 0)
    assert records.source.read == [3]  # with its record
    monkeypatch.setattr(indexed, "_WHOLE_BYTES", 2500)
    for i in range(12):
        assert load_images(records[i])[0].getpixel((0, 0)) == (i, 0, 0)
    assert len(records._kept.records) == 2 and records._kept.bytes < 2500
    assert load_images(records[3])[0].getpixel((0, 0)) == (3, 0, 0)
    assert records.source.read[-1] == 3


def test_what_holds_no_picture_is_not_kept_with_its_row(tmp_path):
    rows = [{"prompt": f"{i}", "answer": "1", "figure": "x" * 999} for i in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = load_records(tmp_path / "a.jsonl", task="t")
    assert len([*records]) == 8 and not records._kept.records


def test_a_picture_in_a_column_of_another_name_is_not_held(tmp_path):
    layout = layout_of({"images": ["figure"]})
    rows = [{"prompt": f"{i}", "answer": "1", "figure": {"bytes": jpeg(i)}} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    records = load_records(tmp_path / "a.parquet", task="t", layout=layout)
    assert records[1].columns == {"figure": {"bytes": None}}
    assert load_images(records[1])[0].getpixel((0, 0)) == (1, 0, 0)


def test_some_records_keep_what_all_of_them_need(tmp_path):
    rows = [{"prompt": f"{i}", "answer": "1", "verifier": "number"} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = load_records(tmp_path / "a.jsonl", task="t")
    some = records[1:3]
    assert some.facts.needs == records.facts.needs
    assert [*some.facts.asked] == [*records.facts.asked[1:3]]
    assert digest_of(some) == digest_of([*some]) != digest_of(records)
    read = Records(Noting(some.source), some.make, some.rows, some.facts)
    assert [*verifiers_of(read)] == [*verifiers_of([*some])] == ["number"]
    assert not read.source.read


class Odd:
    """An order whose batches have the odd rows in their second half."""

    def __getitem__(self, number):
        rows = (np.arange(4) + 4 * number) % 12
        return np.concatenate([rows[::2], rows[1::2]])


def test_a_process_reads_its_own_rows_alone(records):
    made = batches(records, lambda items, ids: ids, order=Odd(), shard=RowShard((1,), 2, 1))
    assert [next(made).tolist() for _ in range(4)] == [[1, 3], [5, 7], [9, 11], [1, 3]]
    assert {*records.source.read} == {1, 3, 5, 7, 9, 11}


def test_joined(records, tmp_path):
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "?", "answer": "x"}))
    more = load_records(tmp_path / "more.jsonl", task="t")
    both = Joined([records[:2], [], more, records[10:]])
    assert [record.answer for record in both] == ["0", "1", "x", "10", "11"]
    assert [record.answer for record in both[1:3]] == ["1", "x"] and both[-1].answer == "11"
    assert len(Joined([])) == 0 and [*Joined([[], []])] == []
    assert [record.answer for record in only(both, [3, 0])] == ["10", "0"]
    assert [record.answer for record in only(records, [3, 0])] == ["3", "0"]
