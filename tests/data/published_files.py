"""Small copies of published data sets, in files of exactly the form that is downloaded."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHADES = ("red", "blue", "green", "black", "gold", "pink", "gray", "navy")


def picture(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32 + number, 32), SHADES[number % len(SHADES)]).save(buffer, kind)
    return buffer.getvalue()


def put(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps(content))


_TYPES = {
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    "strings": pa.list_(pa.string()),
    "int8": pa.int8(),
    "int64": pa.int64(),
}


def table(path: pathlib.Path, kinds: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A Parquet file as `datasets` writes it: pictures are structs, their feature is named in the
    schema's metadata. `kinds` has the columns that are no texts."""
    columns = dict.fromkeys(name for row in rows for name in row)
    fields = [pa.field(name, _TYPES.get(kinds.get(name, ""), pa.string())) for name in columns]
    features = {name: {"_type": "Image"} for name, kind in kinds.items() if kind == "image"}
    schema = pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    pq.write_table(whole, path, row_group_size=2)


def stored(number: int, path: str | None = None) -> dict[str, Any]:
    return {"bytes": picture(number), "path": path or f"{number}.png"}


def scienceqa(root: pathlib.Path) -> None:
    """lmms-lab/ScienceQA."""

    def row(number: int, **change: Any) -> dict[str, Any]:
        return {
            "image": stored(number),
            "question": f"Which is {number}?",
            "choices": ["ice", "steam", "water"],
            "answer": number % 3,
            "hint": "Look at the picture.",
            "task": "closed choice",
            "lecture": "",
            "solution": "It is so.",
        } | change

    kinds = {"image": "image", "choices": "strings", "answer": "int8"}
    for number, split in enumerate(("train", "validation", "test")):
        rows = [row(4 * number + i) for i in range(3)]
        rows.append(row(4 * number + 3, image=None, hint="", answer=1, choices=["no", "yes"]))
        table(root / f"ScienceQA-IMG/{split}-00000-of-00001.parquet", kinds, rows)


def textvqa(root: pathlib.Path) -> None:
    """lmms-lab/textvqa: its test split has no answers."""
    kinds = {
        "image": "image",
        "answers": "strings",
        "question_id": "int64",
        "ocr_tokens": "strings",
    }
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            {
                "image_id": f"i{i}",
                "question_id": 10 * number + i,
                "question": f"what does sign {i} say?",
                "image": stored(i),
                "answers": [] if split == "test" else ["stop"] * 6 + ["Stop!"] * 2 + ["go", "no"],
                "ocr_tokens": ["STOP"],
            }
            for i in range(6)
        ]
        table(root / f"data/{split}-00000-of-00001.parquet", kinds, rows)


def vizwiz(root: pathlib.Path) -> None:
    """lmms-lab/VizWiz-VQA: answers in val alone."""
    kinds = {"image": "image", "answers": "strings"}
    for split in ("val", "test"):
        rows = [
            {
                "question_id": f"VizWiz_{split}_{i:08}.jpg",
                "image": stored(i),
                "question": f"what is {i}?",
                "answers": None if split == "test" else ["a mug"] * 4 + ["unanswerable"] * 6,
                "category": "other",
            }
            for i in range(12)
        ]
        table(root / f"data/{split}-00000-of-00001.parquet", kinds, rows)


def textvqa_original(root: pathlib.Path) -> None:
    """The project's own files: a list of data, and a folder of pictures."""
    for number, split in enumerate(("train", "val")):
        rows = []
        for i in range(6):
            name = f"{number}{i}"
            put(root / f"train_images/{name}.jpg", picture(i, "JPEG"))
            rows.append(
                {
                    "question": f"what does sign {i} say?",
                    "image_id": name,
                    "image_classes": ["Sign"],
                    "question_id": int(name),
                    "answers": ["stop"] * 6 + ["Stop!"] * 2 + ["go", "no"],
                    "set_name": split,
                }
            )
        data = {"dataset_type": split, "dataset_name": "textvqa", "data": rows}
        put(root / f"TextVQA_0.5.1_{split}.json", data)


def vizwiz_original(root: pathlib.Path) -> None:
    """The project's own files: annotators with their confidence, a folder of pictures a split."""
    said = ["a mug"] * 7 + ["mug"] * 3
    for split in ("train", "val"):
        rows = []
        for i in range(6):
            name = f"VizWiz_{split}_{i:08}.jpg"
            put(root / split / name, picture(i, "JPEG"))
            answers = [{"answer": one, "answer_confidence": "yes"} for one in said]
            about = {"answer_type": "other", "answerable": 1}
            rows.append({"image": name, "question": f"what is {i}?", "answers": answers} | about)
        put(root / f"Annotations/{split}.json", rows)


def gqa(root: pathlib.Path) -> None:
    """lmms-lab/GQA: pictures and questions in configs of their own."""
    for number, split in enumerate(("train", "val", "testdev")):
        pictures = [{"id": f"n{number}{i}", "image": stored(i)} for i in range(3)]
        questions = [
            {
                "id": f"{number}{i}",
                "imageId": f"n{number}{i % 3}",
                "question": f"Is it {i}?",
                "answer": "yes",
                "fullAnswer": "Yes, it is.",
            }
            for i in range(5)
        ]
        name = f"{split}-00000-of-00001.parquet"
        table(root / f"{split}_balanced_images" / name, {"image": "image"}, pictures)
        table(root / f"{split}_balanced_instructions" / name, {}, questions)


def gqa_original(root: pathlib.Path) -> None:
    """The project's own files: objects by their ids, and a folder of pictures."""
    for number, split in enumerate(("train", "val", "testdev")):
        rows = {
            f"{number}{i}": {
                "imageId": f"n{number}{i}",
                "question": f"Is it {i}?",
                "answer": "yes",
                "fullAnswer": "Yes, it is.",
                "semantic": [{"operation": "select", "dependencies": []}],
            }
            for i in range(3)
        }
        put(root / f"{split}_balanced_questions.json", rows)
        for i in range(3):
            put(root / f"images/n{number}{i}.jpg", picture(i, "JPEG"))


def geometry3k(root: pathlib.Path) -> None:
    """hiyouga/geometry3k."""
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            {"images": [stored(i)], "problem": f"<image>Find x{i}.", "answer": r"\frac{1}{2}"}
            for i in range(number, number + 3)
        ]
        table(root / f"data/{split}-00000-of-00001.parquet", {"images": "images"}, rows)


def pathvqa(root: pathlib.Path) -> None:
    """flaviagiammarino/path-vqa."""
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            {"image": stored(i), "question": f"what is {i}?", "answer": answer}
            for i, answer in enumerate(("yes", "liver cells", "no"), start=number)
        ]
        table(root / f"data/{split}-00000-of-00001-abc123.parquet", {"image": "image"}, rows)


def superclevr(root: pathlib.Path) -> None:
    """RyanWW/Super-CLEVR: one file of questions for all splits."""
    answers = {"000000": 2, "019999": "True", "020000": "suv", "024999": 0, "025000": "False"}
    rows = [
        {
            "image_filename": f"superCLEVR_new_{number}.png",
            "question": f"How many in {number}?",
            "answer": answer,
            "question_index": i,
            "question_hash": f"count_{i}",
            "program": [{"type": "scene", "inputs": []}],
        }
        for i, (number, answer) in enumerate(answers.items())
    ]
    info = {"split": "new", "license": "MIT", "version": "1.0", "date": ""}
    put(root / "superCLEVR_questions_30k.json", {"info": info, "questions": rows})
    for i, row in enumerate(rows):
        put(root / "images" / row["image_filename"], picture(i))


def clevr_math(root: pathlib.Path) -> None:
    """dali-does/clevr-math, as `save_to_disk` or a Parquet copy has it."""
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            {
                "template": "subtraction",
                "id": f"{split}{i}",
                "question": f"Take {i} away.",
                "image": stored(number + i),
                "label": i,
            }
            for i in range(3)
        ]
        kinds = {"image": "image", "label": "int64"}
        table(root / f"data/{split}-00000-of-00001.parquet", kinds, rows)


def iconqa(root: pathlib.Path) -> None:
    """lmms-lab/ICON-QA: val and test."""
    pictures = ["query_image", *(f"choice_image_{i}" for i in range(3))]
    blank = dict.fromkeys(pictures[1:])
    rows: list[dict[str, Any]] = [
        {
            "question_id": "1",
            "ques_type": "choose_img",
            "question": "Which is blue?",
            "choices": "choice_0.png,choice_1.png",
            "answer": "choice_1.png",
            "query_image": stored(0),
            "choice_image_0": stored(1),
            "choice_image_1": stored(2),
            "choice_image_2": None,
        },
        {
            "question_id": "2",
            "ques_type": "choose_txt",
            "question": "Which word?",
            "choices": "left, right",
            "answer": "right",
            "query_image": stored(3),
            **blank,
        },
        {
            "question_id": "3",
            "ques_type": "fill_in_blank",
            "question": "How many?",
            "choices": None,
            "answer": "7",
            "query_image": stored(4),
            **blank,
        },
    ]
    for split in ("val", "test"):
        path = root / f"data/{split}-00000-of-00001.parquet"
        table(path, dict.fromkeys(pictures, "image"), rows)


def arxivqa(root: pathlib.Path) -> None:
    """MMInstruction/ArxivQA: one file of lines."""
    rows = [
        {
            "id": f"cs-{i}",
            "image": f"images/{i}.jpg",
            "options": ["A) up", "B) down", "C) flat"] if i % 2 else ["up", "down", "flat"],
            "question": f"Which way does curve {i} go?",
            "label": "B" if i % 2 else "B) down",
            "rationale": "It falls.",
        }
        for i in range(12)
    ]
    put(root / "arxivqa.jsonl", "\n".join(map(json.dumps, rows)))
    for i in range(12):
        put(root / f"images/{i}.jpg", picture(i, "JPEG"))


def arxivqa_vidore(root: pathlib.Path) -> None:
    """vidore/arxivqa_test_subsampled."""
    rows = [
        {
            "query": f"Which way does curve {i} go?",
            "image": stored(i),
            "image_filename": f"images/{i}.jpg",
            "options": "['A) up', 'B) down', 'C) flat']",
            "answer": "B",
            "page": "",
            "model": "gpt4V",
            "prompt": "",
            "source": "arxiv_qa",
        }
        for i in range(3)
    ]
    table(root / "data/test-00000-of-00001.parquet", {"image": "image"}, rows)


def flickr30k(root: pathlib.Path) -> None:
    """lmms-lab/flickr30k: all in test; nlphuji's copy has a column of splits."""
    kinds = {"image": "image", "caption": "strings", "sentids": "strings"}
    rows = [
        {
            "image": stored(i),
            "caption": [f"A dog {verb} over {i} logs." for verb in ("jumps", "leaps", "runs")],
            "sentids": ["0", "1", "2"],
            "img_id": str(i),
            "filename": f"{i}.jpg",
        }
        for i in range(12)
    ]
    table(root / "data/test-00000-of-00001.parquet", kinds, rows)


def imagenet_r(root: pathlib.Path) -> None:
    """The archive's folder: a folder a class, and its names in README.txt."""
    names = {"n01443537": "goldfish", "n02106662": "german_shepherd_dog"}
    lines = [f"{wnid} {name}" for wnid, name in names.items()]
    put(root / "imagenet-r/README.txt", "\n".join(["ImageNet-R", "", *lines]))
    for number, wnid in enumerate(names):
        for i in range(8):
            put(root / f"imagenet-r/{wnid}/art_{i}.jpg", picture(2 * i + number, "JPEG"))


# folder of instructions, its train file, picture of a row, answer
UCIT = {
    "ImageNet-R": ("train.json", "ImageNet-R/{}/n01443537/art_{}.jpg", "goldfish"),
    "ArxivQA": ("train_4w.json", "ArxivQA/images/{}_{}.jpg", "B"),
    "VizWiz": ("train.json", "VizWiz/{}/VizWiz_{}.jpg", "A mug on a table."),
    "IconQA": ("train.json", "IconQA/iconqa_data/iconqa/{}/choose_txt/{}/image.png", "B"),
    "CLEVR": ("train_4w.json", "CLEVR/images/{}/CLEVR_{}.png", "3"),
    "Flickr30k": ("train_brief_4w.json", "Flickr30k/{}/{}.jpg", "A dog leaps."),
}


def ucit(root: pathlib.Path) -> None:
    """HaiyangGuo/UCIT, and the pictures of the sets that it is made of."""
    for task, (train, place, answer) in UCIT.items():
        folder = root / "instructions" / task
        learned, tested = [], []
        for i in range(12):
            image = place.format("train", i)
            put(root / "datasets" / image, picture(i))
            said = [
                {"from": "human", "value": f"<image>\nQuestion {i}? Answer briefly."},
                {"from": "gpt", "value": answer},
            ]
            learned.append({"id": i, "image": image, "conversations": said})
        for i in range(3):
            image = place.format("test", i)
            put(root / "datasets" / image, picture(i))
            text = f"Question {i}? Answer briefly."
            tested.append({"question_id": i, "image": image, "text": text, "answer": answer})
        put(folder / train, learned)
        put(folder / "test_3000.json", tested)
        if task in ("VizWiz", "Flickr30k"):
            captions = [
                {"image_id": 1 + i, "id": 5 * i + k, "caption": f"Caption {k} of {i}."}
                for i in range(3)
                for k in range(5)
            ]
            images = [{"id": 1 + i, "file_name": row["image"]} for i, row in enumerate(tested)]
            put(
                folder / "val_coco_type_3000.json",
                {"images": images, "annotations": captions, "type": "captions", "info": {}},
            )


def mllm_cl(root: pathlib.Path) -> None:
    """Impression2805/MLLM-CL, its domains."""
    answers = {"RS": "yes", "Med": "liver", "AD": "A", "Sci": "C", "Fin": "No"}
    for domain, answer in answers.items():
        folder = root / domain
        learned, tested = [], []
        for i in range(12):
            put(folder / f"images/{i}.png", picture(i))
            said = [
                {"from": "human", "value": f"<image>\nQuestion {i}?"},
                {"from": "gpt", "value": answer},
            ]
            image = f"images/{i}.png"
            learned.append({"id": str(i), "image": image, "conversations": said})
            tested.append(
                {"question_id": i, "image": image, "text": f"Test {i}?", "answer": answer}
            )
        put(folder / "train.json", learned)
        put(folder / "test.json", tested[:3])
