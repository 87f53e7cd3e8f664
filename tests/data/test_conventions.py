"""Rows of every convention that is read without saying so, and what is refused."""

import base64
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.records import load_images


def png(color=(255, 0, 0)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def one(folder, row, suffix="jsonl", **options):
    path = folder / f"data.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    (record,) = load_records(path, task="t", **options)
    return record


def test_messages_with_images_in_them(tmp_path):
    (tmp_path / "red.png").write_bytes(png())
    parts = [{"type": "image", "path": "red.png"}, {"type": "text", "text": "Which colour?"}]
    said = [{"type": "text", "text": "red"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": said}]
    for suffix in ("jsonl", "parquet"):
        record = one(tmp_path, {"messages": messages}, suffix)
        assert (record.prompt, record.answer) == ("<image>Which colour?", "red")
        assert load_images(record)[0].getpixel((0, 0)) == (255, 0, 0)


def test_verls_rows(tmp_path):
    row = {
        "data_source": "hiyouga/geometry3k",
        "prompt": [
            {"role": "system", "content": "Think."},
            {"role": "user", "content": "<image>Find x."},
        ],
        "images": [{"bytes": png(), "path": None}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "train", "index": 0, "answer": "3", "question": "Find x."},
    }
    record = one(tmp_path, row, "parquet", verifier="math")
    assert (record.prompt, record.answer, record.system) == ("<image>Find x.", "3", "Think.")
    assert record.columns["data_source"] == "hiyouga/geometry3k"
    assert record.columns["extra_info"]["index"] == 0
    assert len(load_images(record)) == 1


@pytest.mark.parametrize(
    "form",
    [
        lambda text: {"image": text},
        lambda text: {"image": "data:image/png;base64," + text},
        lambda text: {"images": [text[:60] + "\n" + text[60:]]},
        lambda text: {"images": [{"bytes": None, "path": "data:image/png;base64," + text}]},
        lambda text: {
            "prompt": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {"url": "data:image/png;base64," + text},
                        },
                        {"type": "text", "text": "?"},
                    ],
                }
            ]
        },
    ],
    ids=["plain", "url", "lines", "path", "openai"],
)
def test_images_in_base64(tmp_path, form):
    row = {"prompt": "?", "answer": "red", **form(base64.b64encode(png()).decode())}
    assert load_images(one(tmp_path, row))[0].getpixel((0, 0)) == (255, 0, 0)


def test_a_path_that_begins_as_base64_does_stays_a_path(tmp_path):
    name = "Qk" + "a" * 60  # base64, were it not for its suffix
    (tmp_path / f"{name}.png").write_bytes(png())
    record = one(tmp_path, {"prompt": "?", "answer": "x", "image": f"{name}.png"})
    assert record.images == (tmp_path / f"{name}.png",)


VIDEO = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
ASKED = {"role": "user", "content": "?"}
TWO_SYSTEMS = [{"role": "system", "content": "Be brief."}, ASKED]
SHOWN = [ASKED, {"role": "assistant", "content": [{"type": "image", "path": "red.png"}]}]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"image": "https://host/a.png"}, r"found the address 'https://host/a.png', and nothing"),
        ({"image": "data:image/png,abc"}, "found a data URL .*expected one in base64"),
        ({"image": "data:image/png;base64,a.b"}, "found a data URL that is no base64"),
        ({"image": "data:image/png;base64,aGFsbG8="}, r"image 0 \(5 bytes\): it cannot be read"),
        ({"videos": ["a.mp4"]}, "found a video in its column 'videos', and only images are read"),
        ({"video": {"path": "a.mp4"}}, "found a video in its column 'video'"),
        ({"prompt": VIDEO}, "found a video in its message"),
        ({"prompt": "<video>What happens?"}, "found a video in its question"),
        (
            {"prompt": TWO_SYSTEMS, "system": "Think."},
            "found two system messages, 'Be brief.' among",
        ),
        (
            {"prompt": SHOWN},
            "found an image in the assistant's message, expected an answer in text",
        ),
        ({"answer": {"text": ["x"], "answer_start": [3]}}, "say in format which of its fields"),
        ({"answer": [{"value": "x"}]}, "expected a text or a number, found {'value': 'x'}"),
        ({"answer": None, "reward_model": {"style": "rule"}}, "reward_model.ground_truth"),
    ],
)
def test_what_is_refused_says_what_to_do(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"data.jsonl, line 1 .*{message}"):
        one(tmp_path, {"prompt": "?", "answer": "x", **change})


def test_no_video_is_no_obstacle(tmp_path):
    row = {"prompt": "?", "answer": "x", "videos": [], "video": None}
    assert one(tmp_path, row).columns == {}


@pytest.mark.parametrize("name", ["conversations", "messages", "prompt"])
def test_a_system_message_beside_the_messages(tmp_path, name):
    said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]
    record = one(tmp_path, {name: said, "system": "Think."})
    assert (record.prompt, record.answer, record.system) == ("?", "x", "Think.")
    assert [turn["role"] for turn in record.chat] == ["system", "user"]
    assert record.chat[0]["content"] == "Think."
    same = [{"from": "system", "value": "Think."}, *said]
    assert len(one(tmp_path, {name: same, "system": "Think."}).chat) == 2
