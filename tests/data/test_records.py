"""Reading records in three conventions, and what a user is told when something is wrong."""

import dataclasses
import datetime
import decimal
import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.records import Record, load_images
from rdbcl_jax.data.tasks import load_held_out, read_source
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.rewards.scoring import score
from tests.engine import small_config


def encoded(color=(255, 0, 0), size=(4, 2)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(encoded(color))
    return tmp_path


def jsonl(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def parquet(folder, *rows, name="data.parquet"):
    path = folder / name
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def one(path, **kwargs):
    (record,) = load_records(path, task="t", **kwargs)
    return record


def test_trl_jsonl(folder):
    row = {"prompt": "How many?", "image": "pictures/red.png", "solution": "7", "hint": "count"}
    record = one(jsonl(folder, row), verifier="number")
    assert record == Record(
        id="data.jsonl:1",
        task="t",
        prompt="How many?",
        images=(folder / "pictures" / "red.png",),
        answer="7",
        verifier="number",
        columns={"solution": "7", "hint": "count"},  # TRL's functions ask for `solution`
    )
    (image,) = load_images(record)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 2), (255, 0, 0))


def test_trl_chat_messages(folder):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
    ]
    row = {"prompt": messages, "images": ["pictures/red.png"], "answer": 7}
    record = one(jsonl(folder, row))
    assert (record.prompt, record.answer) == ("<image>How many?", "7")
    assert record.columns == {"system": "Be brief."}


def test_images_inside_chat_messages(folder):
    parts = [
        {"type": "text", "text": "Is "},
        {"type": "image", "image": "pictures/red.png"},
        {"type": "text", "text": " red?"},
    ]
    rows = {"prompt": [{"role": "user", "content": parts}], "answer": "yes"}
    for path in (jsonl(folder, rows), parquet(folder, rows)):
        record = one(path, verifier="yes_no")
        assert record.prompt == "Is <image> red?"
        assert record.images == (folder / "pictures" / "red.png",)


def test_easyr1_parquet_with_several_images_as_bytes(folder):
    images = [
        {"bytes": encoded((1, 2, 3)), "path": None},
        {"bytes": None, "path": "pictures/red.png"},
    ]
    row = {"problem": "<image> and <image>: same?", "images": images, "answer": "no"}
    record = one(parquet(folder, row), verifier="yes_no")
    assert record.id == "data.parquet:0"
    assert record.prompt == "<image> and <image>: same?"
    first, second = load_images(record)
    assert first.getpixel((0, 0)) == (1, 2, 3) and second.getpixel((0, 0)) == (255, 0, 0)


def test_vlm_r1_conversations(folder):
    row = {
        "id": 12,
        "image": "pictures/red.png",
        "conversations": [
            {"from": "human", "value": "<image>Which colour?"},
            {"from": "gpt", "value": "<think>see</think><answer> Red </answer>"},
        ],
    }
    record = one(jsonl(folder, row))
    assert (record.id, record.prompt, record.answer) == ("12", "<image>Which colour?", "Red")


def test_a_gold_answer_may_be_structured(folder):
    row = {"prompt": "Where?", "answer": {"size": [9, 9], "boxes": [[1, 2, 3, 4]]}}
    record = one(jsonl(folder, row), verifier="boxes")
    response = "<think>there</think><answer>[[1, 2, 3, 4]]</answer>"
    assert score([record], [response]).accuracy == [1]


def test_what_is_kept_of_a_row_holds_no_pictures(folder):
    """Thousands of records are kept, and their pictures are not."""
    picture = {"bytes": encoded((255, 0, 0)), "path": None}
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "Which?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "answer": "a", "scan": b"raw"}
    record = one(parquet(folder, {**row, "level": 3, "images": [picture]}))
    assert len(record.images) == 1 and "images" not in record.row
    assert (record.row["level"], record.row["scan"]) == (3, None)
    shown, asked = record.chat[0]["content"]
    assert shown["image"]["bytes"] is None and asked["text"] == "Which?"


def test_a_list_of_answers_means_any_of_them(folder):
    rows = [
        {"prompt": "?", "answer": ["3", "three"]},
        {"prompt": "?", "answers": [4, None, "four", 4.0]},
        {"prompt": "?", "solution": ["yes"]},
        {"prompt": "?", "answer": ["lots", "7"], "verifier": "number"},
        {"prompt": "?", "answer": [2, 1, 3], "verifier": "jigsaw"},
    ]
    records = load_records(jsonl(folder, *rows), task="t")
    assert [r.answer for r in records] == ["3", "4", "yes", "lots", "[2, 1, 3]"]
    assert [r.answers for r in records] == [
        ("3", "three"),
        ("4", "four", "4"),
        (),
        ("lots", "7"),
        (),
    ]
    for answers in (["3", "4", "yes", "7", "2 1 3"], ["Three", "FOUR", "yes", "7.0", "[2, 1, 3]"]):
        texts = [in_format(".", answer) for answer in answers]
        assert score(records, texts).accuracy.tolist() == [1] * 5
    wrong = [in_format(".", answer) for answer in ("3 three", "3", '["yes"]', "lots", "1 2 3")]
    assert score(records, wrong).accuracy.tolist() == [0] * 5


@pytest.mark.parametrize(
    "row,message",
    [
        ({"answer": []}, "answer: found an empty list, expected at least one"),
        ({"answers": [None]}, "answer: found an empty list"),
        ({"answer": ["a", "b"], "verifier": "number"}, "expected a finite number, found 'a'"),
        ({"answers": ["a", "b", "a"], "verifier": "vqa"}, "of at least 4 annotators, found"),
        (
            {"answer": "a", "verifier": "vqa"},
            r"at least 4 .* found \['a'\]; for fewer name",
        ),
    ],
)
def test_lists_of_answers_of_which_none_can_be_right(folder, row, message):
    with pytest.raises(ValueError, match=rf"data.jsonl, line 1 .*{message}"):
        one(jsonl(folder, {"prompt": "?", **row}))


def test_text_only_and_image_rows_mix(folder):
    rows = [
        {"prompt": "2 + 2?", "answer": "4", "image": None},
        {"prompt": "How many?", "answer": "7", "image": "pictures/red.png"},
        {"prompt": "3 + 3?", "answer": "6", "images": []},
    ]
    for path in (jsonl(folder, *rows), parquet(folder, *rows)):
        records = load_records(path, task="t")
        assert [len(load_images(record)) for record in records] == [0, 1, 0]


def test_the_verifier_of_each_row(folder):
    rows = [{"prompt": "?", "answer": "B", "verifier": "choice"}, {"prompt": "?", "answer": "B"}]
    records = load_records(jsonl(folder, *rows), task="t")
    assert [record.verifier for record in records] == ["choice", "exact"]


def test_a_data_file_names_no_code_that_the_config_does_not(folder):
    own = "tests.rewards.test_verifiers:within"
    rows = [{"prompt": "?", "answer": "7", "verifier": v} for v in ("number:0.05", own)]
    path = str(jsonl(folder, *rows))
    with pytest.raises(ValueError, match=r"line 2 .*cannot name code to import"):
        load_records(path, task="t")
    records = load_records(path, task="t", trusted=[own])
    assert [record.verifier for record in records] == ["number:0.05", own]
    config = small_config()
    config.tasks.mine = {"test": path}
    with pytest.raises(ValueError, match="cannot name code to import"):
        read_source(path, config, split="test", task="mine")
    config.tasks.other = {"test": path, "verifier": own}
    assert [*read_source(path, config, split="test", task="mine")] == [
        dataclasses.replace(record, task="mine") for record in records
    ]


def test_a_pattern_of_files_is_read_in_order(folder):
    for shard in (1, 0):
        rows = [{"prompt": f"{shard} {i}", "answer": "x"} for i in range(2)]
        parquet(folder, *rows, name=f"train-{shard}.parquet")
    records = load_records(str(folder / "train-*.parquet"), task="t")
    assert [record.prompt for record in records] == ["0 0", "0 1", "1 0", "1 1"]
    assert len({record.id for record in records}) == 4


def test_images_are_decoded_only_when_asked_for(folder):
    whole = encoded(size=(64, 64))
    (folder / "pictures" / "cut.png").write_bytes(whole[: len(whole) - 30])
    row = {"id": "c", "prompt": "?", "answer": "x", "image": "pictures/cut.png"}
    record = one(jsonl(folder, row))
    with pytest.raises(ValueError, match=r"record 'c': image 0 \(.*cut.png\): its body cannot"):
        load_images(record)


def test_pil_images_are_left_as_they_are():
    image = Image.new("L", (3, 3), 7)
    record = Record("r", "t", "?", (image,), "x", "exact")
    assert load_images(record)[0].getpixel((0, 0)) == (7, 7, 7)
    assert load_images(record)[0].size == (3, 3) and image.getpixel((0, 0)) == 7


GOOD = {"prompt": "?", "answer": "7", "image": "pictures/red.png"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, r"expected a question in one of prompt, problem"),
        ({"prompt": " "}, r"the question is empty"),
        ({"prompt": 7}, r"question: expected text or a list of messages, found 7"),
        (
            {"prompt": [{"role": "user", "content": 7}]},
            r"message: expected text or a list of parts",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, r"text or an image"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2}, r"\['user', 'user'\]; expected one"),
        ({"prompt": [{"role": "system", "content": "a"}]}, r"expected one of the user"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, "tool"),
        ({"answer": None}, r"expected an answer in one of answer, solution"),
        ({"answer": "seven"}, r"verifier 'number': expected a finite number, found 'seven'"),
        ({"answer": ""}, r"verifier 'number'"),
        (
            {"image": "pictures/none.png"},
            r"image 0 \(.*none.png\): there is no such file; paths are",
        ),
        ({"image": "data.jsonl"}, r"image 0 \(.*data.jsonl\): it cannot be read as a picture"),
        ({"image": "pictures"}, r"image 0 \(.*pictures\): it is no regular file"),
        ({"image": 7}, r"image: expected a path, bytes or \{bytes, path\}, found 7"),
        ({"image": {"bytes": None, "path": None}}, r"image: expected a path"),
        ({"prompt": "<image><image>"}, r"found 2 <image> in the question and 1 images"),
        ({"prompt": "<image>", "image": None}, r"found 1 <image> in the question and 0 images"),
    ],
)
def test_errors_name_the_record(folder, change, message):
    rows = [GOOD, {**GOOD, "id": "bad", **change}]
    with pytest.raises(ValueError, match=message) as error:
        load_records(jsonl(folder, *rows), task="t", verifier="number")
    assert str(error.value).startswith(f"{folder / 'data.jsonl'}, line 2 (id 'bad'): ")


def test_duplicate_ids(folder):
    with pytest.raises(ValueError, match=r"line 3: id 'a' was already used at .*line 1;"):
        path = jsonl(folder, {**GOOD, "id": "a"}, {**GOOD, "id": "b"}, {**GOOD, "id": "a"})
        load_records(path, task="t")


def test_an_unknown_verifier(folder):
    with pytest.raises(ValueError, match=r"unknown verifier 'nope'; there are: anls, boxes, "):
        load_records(jsonl(folder, GOOD), task="t", verifier="nope")


def test_an_unknown_verifier_of_a_task_is_the_configs_fault(folder):
    config = small_config()
    for name in ("nope", "boxes:0"):
        source = str(jsonl(folder, GOOD))
        config.tasks.mine = {"validation": source, "test": source, "verifier": name}
        config.evaluation.tasks = ("mine",)
        with pytest.raises(ValueError, match=rf"^config\.tasks\.mine\.verifier: .*'{name}'"):
            load_held_out(config)


def test_files_that_cannot_be_read(folder):
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_records(folder / "nope.jsonl", task="t")
    (folder / "data.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"expected a file of one of \.jsonl, \.json"):
        load_records(folder / "data.csv", task="t")
    (folder / "data.jsonl").write_text('{"prompt": "?", "answer": "7"}\n\n{"prompt": ')
    with pytest.raises(ValueError, match="line 3: not JSON"):
        load_records(folder / "data.jsonl", task="t")
    (folder / "data.jsonl").write_text("[1]")
    with pytest.raises(ValueError, match=r"line 1: expected an object, found \[1\]"):
        load_records(folder / "data.jsonl", task="t")
    (folder / "data.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no records"):
        load_records(folder / "data.jsonl", task="t")


# --- values as people write them, and files as they should not be --------------------------------


@pytest.mark.parametrize(
    "answers,expected",
    [
        (pa.array([b"3"]), "3"),
        (pa.array([decimal.Decimal("3.50")]), "3.50"),
        (pa.array([decimal.Decimal("1E+3")], pa.decimal128(8, 0)), "1000"),
        (pa.array([0.1], pa.float16()), "0.1"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([0.1]), "0.1"),
        (pa.array([3.0]), "3"),
        (pa.array([3.0], pa.float32()), "3"),
        (pa.array([-0.0]), "0"),
        (pa.array([1e300]), "1e+300"),
        (pa.array([2**60]), str(2**60)),
        (pa.array([datetime.date(2026, 11, 25)]), "2026-11-25"),
        (pa.array([datetime.datetime(2026, 11, 25)]), "2026-11-25"),
        (pa.array([datetime.datetime(2026, 11, 25, 9, 30)]), "2026-11-25 09:30:00"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([True]), "true"),
        (pa.array([[[0.1, 2.5]]], pa.list_(pa.list_(pa.float32()))), "[0.1, 2.5]"),
    ],
)
def test_answers_of_every_parquet_type_read_as_people_write_them(folder, answers, expected):
    table = pa.table({"prompt": ["?"], "answer": answers, "share": pa.array([0.1], pa.float32())})
    pq.write_table(table, folder / "data.parquet")
    record = one(folder / "data.parquet")
    assert (record.answer, record.columns) == (expected, {"share": 0.1})


@pytest.mark.parametrize(
    "answer,message",
    [(b"\xff\xd8", "answer: expected text, found 2 bytes"), (float("nan"), "found nan")],
)
def test_answers_that_nobody_can_write(folder, answer, message):
    with pytest.raises(ValueError, match=rf"data.parquet, row 0 .*{message}"):
        one(parquet(folder, {"prompt": "?", "answer": answer}))


def test_json_numbers_read_the_same_as_those_of_parquet(folder):
    rows = [{"prompt": "?", "answer": a, "id": i} for i, a in enumerate([3.0, 0.1, 3, "3.0"])]
    records = load_records(jsonl(folder, *rows), task="t")
    assert [r.answer for r in records] == ["3", "0.1", "3", "3.0"]
    assert [r.id for r in records] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("empty", ["", " ", {}, {"path": ""}, [""], [{}], [None]])
def test_an_empty_image_is_never_no_image(folder, empty):
    for names in (("image", "images"), ("images", "image")):
        row = {**GOOD, **dict(zip(names, (empty, "pictures/red.png"), strict=True))}
        del row[names[1]]
        with pytest.raises(ValueError, match=r"line 1 .*image: expected a path, bytes"):
            one(jsonl(folder, row))


def test_empty_images_beside_an_image(folder):
    for row in ({**GOOD, "images": []}, {**GOOD, "image": [], "images": GOOD["image"]}):
        for path in (jsonl(folder, row), parquet(folder, row)):
            assert one(path).images == (folder / "pictures/red.png",)


def test_images_outside_the_folder_are_refused_unless_allowed(folder, tmp_path):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "link.png").symlink_to(folder / "pictures/red.png")
    (inner / "in.png").write_bytes(encoded())
    (inner / "inside.png").symlink_to("in.png")
    red = str(folder / "pictures/red.png")
    for image in (red, "../pictures/red.png", "link.png"):
        path = jsonl(inner, {**GOOD, "image": image})
        with pytest.raises(ValueError, match=r"line 1 .*outside .*inner .*data.image_root"):
            one(path)
        for root in (folder, "/"):
            assert load_images(one(path, image_root=root))
    for image in ("in.png", str(inner / "in.png"), "inside.png", "../inner/in.png"):
        assert load_images(one(jsonl(inner, {**GOOD, "image": image})))


def test_what_a_config_names_and_is_not_there(folder):
    config = small_config()
    config.tasks.mine = {"validation": "none.jsonl", "test": str(jsonl(folder, GOOD))}
    config.evaluation.tasks = ("mine",)
    with pytest.raises(FileNotFoundError, match=r"^config\.tasks\.mine\.validation: no file at"):
        load_held_out(config)
    config.tasks.mine.validation = config.tasks.mine.test
    config.data.image_root = str(folder / "none")
    with pytest.raises(ValueError, match=r"^config\.data\.image_root is '.*none', expected a dir"):
        load_held_out(config)


def test_images_that_are_no_files_are_not_opened(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ValueError, match=r"line 1 .*no regular file"):
        one(jsonl(folder, {**GOOD, "image": "pipe.png"}))
    with pytest.raises(ValueError, match="no regular file"):
        one(jsonl(folder, {**GOOD, "image": "/dev/zero"}), image_root="/")
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValueError, match=r"line 1 .*cannot be read"):
        one(jsonl(folder, {**GOOD, "image": "loop.png"}))


DEEP = b'{"prompt": "?", "answer": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"


@pytest.mark.parametrize(
    "line,message",
    [
        (b'{"prompt": "\xe9", "answer": "7"}', r"not UTF-8 \(byte 0xe9 at column 13\)"),
        (b'{"prompt": "\\ud83d", "answer": "7"}', r"half a character, \\ud83d"),
        (b'{"prompt": "?", "answer": {"\\udc00": 7}}', r"half a character, \\udc00"),
        (DEEP, "nested more than 64 deep"),
        (DEEP.replace(b"[" * 10**5, b"[" * 70).replace(b"]" * 10**5, b"]" * 70), "nested more"),
        (b'{"prompt": "?", "answer": ' + b"9" * 5000 + b"}", "not JSON .*digits"),
        (b'{"prompt": "?", "answer": NaN}', "answer: expected a finite number"),
        (b'{"prompt": "?"', r"not JSON \(Expecting ',' delimiter at column 15\)"),
        (b'{"prompt": "?", "answer": "7", "id": [1]}', r"id: expected a text or a number"),
        (b'{"prompt": "?", "answer": "7", "verifier": ["exact"]}', "verifier: expected a name"),
        (b'{"prompt": {"a": 1}, "answer": "7"}', "question: expected text or a list"),
        (b'{"prompt": "?", "answer": "7", "images": {"a": 1}}', "image: expected a path"),
        (b'{"prompt": "?", "answer": "7", "images": [["a"]]}', "image: expected a path"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_lines_that_are_no_records(folder, line, message):
    (folder / "data.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=message) as error:
        load_records(folder / "data.jsonl", task="t")
    assert str(error.value).startswith(f"{folder / 'data.jsonl'}, line 2")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "content,message",
    [
        (json.dumps(GOOD).encode("utf-16"), "found UTF-16; save it as UTF-8"),
        (gzip.compress(json.dumps(GOOD).encode(), mtime=0), "found gzip; unpack it first"),
    ],
)
def test_files_in_other_encodings(folder, content, message):
    (folder / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"data.jsonl: expected JSON in UTF-8, {message}"):
        load_records(folder / "data.jsonl", task="t")


def test_a_byte_order_mark_is_no_part_of_the_first_line(folder):
    (folder / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert one(folder / "data.jsonl").prompt == GOOD["prompt"]


def test_damaged_parquet_files(folder):
    rows = [{"prompt": f"{i}" * 50, "answer": "7"} for i in range(2000)]
    whole = parquet(folder, *rows).read_bytes()
    for damaged in (b"", b"nonsense", whole[:-100], whole[: len(whole) // 2], whole[:4]):
        (folder / "data.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data.parquet: no Parquet file") as error:
            load_records(folder / "data.parquet", task="t")
        assert "\n" not in str(error.value)
    middle = bytearray(whole)
    middle[200:900] = bytes(700)
    (folder / "data.parquet").write_bytes(middle)
    with pytest.raises(ValueError, match=r"data.parquet, row "):
        load_records(folder / "data.parquet", task="t")


def test_text_that_is_not_utf_8_in_parquet(folder):
    texts = pa.StringArray.from_buffers(
        2, pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ok\xff\xfe")
    )
    pq.write_table(pa.table({"prompt": texts, "answer": ["7", "7"]}), folder / "data.parquet")
    with pytest.raises(ValueError, match=r"data.parquet, row 1: column 'prompt' cannot be read"):
        load_records(folder / "data.parquet", task="t")


def test_what_is_wrong_can_be_left_out_and_listed(folder):
    wrong = {"prompt": ""}, {**GOOD, "image": "none.png"}, {**GOOD, "id": "data.jsonl:1"}
    path, problems = jsonl(folder, GOOD, wrong[0], GOOD, *wrong[1:]), []
    records = load_records(path, task="t", problems=problems)
    assert [record.where for record in records] == [f"{path}, line {n}" for n in (1, 3)]
    assert sorted(problem.split(" (id")[0].split(": id")[0] for problem in problems) == [
        f"{path}, line {n}" for n in (2, 4, 5)
    ]
    with pytest.raises(ValueError, match=r"line 2 .*\(and 2 more: rdbcl check lists all\)"):
        load_records(path, task="t")
    with pytest.raises(ValueError, match="holds no records that can be used"):
        load_records(jsonl(folder, {"prompt": ""}), task="t", problems=[])
