"""Gold boxes and points in the coordinates that the model names places in."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from rdbcl_jax.data.check import Check
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.methods.demonstrations import DemonstrationOptions, demonstration
from rdbcl_jax.models import read_processor, read_tokenizer
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.rewards.scoring import score
from rdbcl_jax.toy import tiny

LIMITS = {"min_pixels": 56 * 56, "max_pixels": 280 * 280}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tiny.write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return PromptEncoder(read_tokenizer(path), read_processor(path, **LIMITS))


def load(folder, encoder, *rows, **options):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "where", **row}) for row in rows))
    check = Check("headers", lambda: encoder)
    return list(load_records(file, task="t", check=check, **options))


@pytest.mark.parametrize("size", [(640, 480), (1000, 100), (20, 30), (281, 279), (2000, 1999)])
def test_the_frame_of_qwen2_5_is_the_resized_picture(encoder, size):
    processor = encoder.processor
    assert processor.config.family == "qwen2_5_vl"
    (((_, grid),),) = processor.pictures([[Image.new("RGB", size)]])
    width, height = processor.frame(size)
    patch = processor.config.vision.patch_size
    assert (height, width) == (grid[0] * patch, grid[1] * patch) != size[::-1]


def test_the_frame_of_other_families_is_thousandths(encoder):
    for family in ("qwen2_vl", "qwen3_vl"):
        config = dataclasses.replace(encoder.processor.config, family=family)
        other = dataclasses.replace(encoder.processor, config=config)
        assert other.frame((640, 480)) == (1000, 1000)


def test_gold_boxes_are_in_pixels_of_the_resized_picture(tmp_path, encoder):
    """Three pictures of one size: as it is, on its side by EXIF, and named by a size of its own."""
    picture = Image.new("RGB", (640, 480))
    picture.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned: seen, it is 640 wide
    Image.new("RGB", (480, 640)).save(tmp_path / "b.jpg", exif=exif)
    box, share = [64, 48, 320, 240], [0.1, 0.1, 0.5, 0.5]
    rows = [
        {"image": "a.png", "answer": [box], "verifier": "grounding"},
        {"image": "b.jpg", "answer": {"bbox_2d": box}, "verifier": "grounding"},
        {"image": "a.png", "answer": {"size": [1, 1], "boxes": [share]}, "verifier": "grounding"},
        {"image": "a.png", "answer": [box], "verifier": "boxes"},
        {"image": "a.png", "answer": [box], "verifier": "pointing"},
        {
            "image": "a.png",
            "answer": {"size": [640, 480], "points": [[320, 240]]},
            "verifier": "pointing",
        },
    ]
    records = load(tmp_path, encoder, *rows)
    width, height = encoder.processor.frame((640, 480))
    assert (width, height) != (640, 480)
    seen = np.rint(share * np.array([width, height, width, height])).astype(int).tolist()
    size = [width, height]
    sized = {"size": size, "boxes": [seen]}
    assert [json.loads(record.answer) for record in records[:3]] == [sized] * 3
    assert json.loads(records[3].answer) == [box]  # as it is written
    assert json.loads(records[4].answer) == sized
    middle = [round(width / 2), round(height / 2)]
    assert json.loads(records[5].answer) == {"size": size, "points": [middle]}
    right = [*[f'[{{"bbox_2d": {seen}}}]'] * 3, f"[{box}]", str(seen[:2]), str(middle)]
    as_stored = [*[str(box)] * 3, str(seen), "[320, 240]", "[320, 240]"]
    for answers, accuracy in ((right, 1), (as_stored, 0)):
        texts = [in_format(".", answer) for answer in answers]
        assert score(records, texts).accuracy.tolist() == [accuracy] * 6
    taught = demonstration(DemonstrationOptions(target="answer"))  # without the size
    assert taught(records[0]) == in_format(".", f"[{seen}]")
    assert taught(records[3]) == in_format(".", records[3].answer)
    assert taught(records[5]) == in_format(".", f"[{middle}]")
    assert records[0].row["answer"] == [box]  # reward functions get what the file says


def test_gold_boxes_in_shares_of_the_picture(tmp_path, encoder):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    golds = [[0, 0, 1, 1], [[0.25, 0.5, 1.0, 1]], [{"bbox_2d": [0, 0.5, 0.5, 1]}], [0, 0, 1, 2]]
    rows = [{"image": "a.png", "answer": gold} for gold in golds]
    records = load(tmp_path, encoder, *rows, verifier="grounding")
    w, h = encoder.processor.frame((640, 480))
    found = [json.loads(record.answer)["boxes"] for record in records]
    assert found[:3] == [
        [[0, 0, w, h]],
        [[round(w / 4), round(h / 2), w, h]],
        [[0, round(h / 2), round(w / 2), h]],
    ]
    assert found[3] == [[0, 0, 1, 1]]  # two pixels high: fewer in the resized picture


@pytest.mark.parametrize(
    "row,message",
    [
        ({"image": "a.png", "answer": [0, 0, 641, 10]}, "box .*expected 0 <= x1 < x2 <= 640"),
        ({"answer": [0, 0, 64, 10]}, "reads places in one picture, found 0"),
        ({"image": "gone.png", "answer": [0, 0, 64, 10]}, "there is no such file"),
    ],
)
def test_places_that_lie_nowhere(tmp_path, encoder, row, message):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"rows.jsonl, line 1 \(id .*{message}"):
        load(tmp_path, encoder, row, verifier="grounding")


@pytest.mark.parametrize(
    "gold", [[320, 240], [[320, 240]], {"points": [[320, 240]]}, {"point_2d": [320, 240]}]
)
def test_gold_points_in_pixels(tmp_path, encoder, gold):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    row = {"image": "a.png", "answer": gold, "verifier": "pointing"}
    (record,) = load(tmp_path, encoder, row)
    width, height = encoder.processor.frame((640, 480))
    middle = [round(width / 2), round(height / 2)]
    assert json.loads(record.answer) == {"size": [width, height], "points": [middle]}
    texts = [in_format(".", str(answer)) for answer in (middle, [0, 0])]
    assert score([record, record], texts).accuracy.tolist() == [1, 0]
    (left,) = load_records(tmp_path / "rows.jsonl", task="t")  # without a model
    assert json.loads(left.answer) == gold
    with pytest.raises(ValueError, match=r"point \[641, 0\]: expected 0 <= x <= 640"):
        load(tmp_path, encoder, row | {"answer": [641, 0]})
    with pytest.raises(ValueError, match=r"gold answer, for the verifier 'pointing'"):
        load(tmp_path, encoder, row | {"answer": [1, 2, 3]})


def test_a_box_is_never_narrower_than_a_pixel(tmp_path, encoder):
    Image.new("RGB", (4000, 4000)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "answer": box} for box in ([3998, 3998, 4000, 4000], [])]
    first, none = load(tmp_path, encoder, *rows, verifier="grounding")
    width, height = encoder.processor.frame((4000, 4000))
    size = [width, height]
    corner = [width - 1, height - 1, width, height]
    assert json.loads(first.answer) == {"size": size, "boxes": [corner]}
    assert json.loads(none.answer) == {"size": size, "boxes": []}


@pytest.mark.parametrize("verifier", ["grounding", "pointing"])
def test_answers_outside_the_picture_are_wrong(tmp_path, encoder, verifier):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    row = {"image": "a.png", "answer": [[0, 0, 640, 480]]}
    (record,) = load(tmp_path, encoder, row, verifier=verifier)
    width, height = encoder.processor.frame((640, 480))
    inside, outside = [0, 0, width, height], [0, 0, width, height + 1]
    if verifier == "pointing":
        inside, outside = inside[2:], outside[2:]
    texts = [in_format(".", str(answer)) for answer in (inside, outside)]
    assert score([record] * 2, texts).accuracy.tolist() == [1, 0]
