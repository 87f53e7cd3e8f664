"""Published data sets, in the files that are downloaded, read by the name of their layout."""

import json
import re

import pytest

from rdbcl_jax.data.layouts import LAYOUTS, Layout, layout_of, letter_of
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.records import load_images
from rdbcl_jax.data.tasks import read_source, task_layout
from tests.data import published_files
from tests.engine import small_config


def shown(record):
    """The numbers of the record's pictures, which their widths tell."""
    return [image.size[0] - 32 for image in load_images(record)]


def read(root, name, source, layout=None, **options):
    getattr(published_files, name)(root)
    layout = LAYOUTS[layout or name]
    return load_records(str(root / source), task="t", layout=layout, **options)


def test_scienceqa(tmp_path):
    records = read(tmp_path, "scienceqa", "ScienceQA-IMG/train-*.parquet")
    assert records[1].prompt == (
        "Context: Look at the picture.\nWhich is 1?\nA. ice\nB. steam\nC. water"
    )
    assert [record.answer for record in records] == ["A", "B", "C", "B"]
    assert {record.verifier for record in records} == {"choice"}
    assert records[1].columns["choices"] == ["ice", "steam", "water"]
    assert records[3].prompt == "Which is 3?\nA. no\nB. yes"
    assert [shown(record) for record in records] == [[0], [1], [2], []]


@pytest.mark.parametrize("name,split", [("textvqa", "train"), ("vizwiz", "val")])
def test_answers_of_ten_annotators(tmp_path, name, split):
    record = read(tmp_path, name, f"data/{split}-*.parquet")[1]
    expected = {
        "textvqa": ("1", "stop", 10),
        "vizwiz": ("VizWiz_val_00000001.jpg", "unanswerable", 10),
    }
    assert (record.id, record.answer, len(record.answers)) == expected[name]
    assert record.verifier == "vqa" and shown(record) == [1]


def test_gqa_as_the_project_has_it(tmp_path):
    records = read(tmp_path, "gqa_original", "train_balanced_questions.json", "gqa")
    assert [(record.prompt, record.answer) for record in records] == [
        (f"Is it {i}?", "yes") for i in range(3)
    ]
    assert records[2].columns["fullAnswer"] == "Yes, it is."
    assert shown(records[2]) == [2]


def test_geometry3k(tmp_path):
    record = read(tmp_path, "geometry3k", "data/validation-*.parquet")[0]
    assert (record.prompt, record.answer, record.verifier) == (
        "<image>Find x1.",
        r"\frac{1}{2}",
        "math",
    )
    assert shown(record) == [1]


def test_pathvqa(tmp_path):
    records = read(tmp_path, "pathvqa", "data/test-*.parquet")
    assert [(record.answer, record.verifier) for record in records] == [
        ("yes", "exact"),
        ("liver cells", "exact"),
        ("no", "exact"),
    ]


def test_superclevr(tmp_path):
    records = read(tmp_path, "superclevr", "superCLEVR_questions_30k.json")
    assert [record.answer for record in records] == ["2", "True", "suv", "0", "False"]
    assert [shown(record) for record in records] == [[i] for i in range(5)]


def test_clevr_math(tmp_path):
    records = read(tmp_path, "clevr_math", "data/train-*.parquet")
    assert [(record.answer, record.verifier) for record in records] == [
        (str(i), "number") for i in range(3)
    ]


def test_iconqa(tmp_path):
    choose, words, blank = read(tmp_path, "iconqa", "data/val-*.parquet")
    assert choose.prompt == "<image>Which is blue?\nA. <image>\nB. <image>"
    assert (choose.answer, choose.verifier, shown(choose)) == ("B", "choice", [0, 1, 2])
    assert words.prompt == "<image>Which word?\nA. left\nB. right"
    assert (words.answer, words.verifier, shown(words)) == ("B", "choice", [3])
    assert (blank.prompt, blank.answer, blank.verifier) == ("<image>How many?", "7", "exact")


def test_arxivqa(tmp_path):
    first, second = read(tmp_path, "arxivqa", "arxivqa.jsonl")[:2]
    assert first.prompt == "Which way does curve 0 go?\nA. up\nB. down\nC. flat"
    assert second.prompt == "Which way does curve 1 go?\nA) up\nB) down\nC) flat"
    assert (first.answer, second.answer, first.verifier) == ("B", "B", "choice")
    assert [shown(first), shown(second)] == [[0], [1]]
    (third,) = read(tmp_path / "v", "arxivqa_vidore", "data/test-*.parquet", "arxivqa")[1:2]
    assert third.prompt == second.prompt and third.answer == "B"


def test_flickr30k(tmp_path):
    record = read(tmp_path, "flickr30k", "data/test-*.parquet")[2]
    assert record.answers == tuple(f"A dog {v} over 2 logs." for v in ("jumps", "leaps", "runs"))
    assert record.verifier == "caption" and record.prompt.startswith("Provide a one-sentence")


def test_ucit(tmp_path):
    learned = read(tmp_path, "ucit", "instructions/CLEVR/train_4w.json")[1]
    assert learned.prompt == "<image>\nQuestion 1? Answer briefly."
    assert (learned.answer, learned.verifier, shown(learned)) == ("3", "exact", [1])
    tested = read(tmp_path, "ucit", "instructions/ArxivQA/test_3000.json", "ucit_arxivqa")[2]
    assert tested.prompt == "Question 2? Answer briefly."
    assert (tested.answer, tested.verifier, shown(tested)) == ("B", "choice", [2])


def test_mllm_cl(tmp_path):
    learned = read(tmp_path, "mllm_cl", "Med/train.json")[1]
    assert (learned.prompt, learned.answer) == ("<image>\nQuestion 1?", "liver")
    tested = read(tmp_path, "mllm_cl", "Fin/test.json")[1]
    assert (tested.prompt, tested.answer, shown(tested)) == ("Test 1?", "No", [1])


def test_every_layout_has_a_verifier_that_is_there():
    for layout in LAYOUTS.values():
        assert layout_of({"verifier": layout.verifier})


def test_a_task_of_columns_of_ones_own(tmp_path):
    published_files.table(
        tmp_path / "data.parquet",
        {"photo": "image"},
        [{"photo": published_files.stored(3), "ask": "Colour?", "info": "x", "gold": "black"}],
    )
    config = small_config()
    config.tasks.mine = {
        "test": str(tmp_path / "data.parquet"),
        "format": {
            "prompt": "{ask}\nIn one word.",
            "answer": "gold",
            "images": ["photo"],
            "verifier": "yes_no",
            "system": "You see {info}.",
        },
        "verifier": "exact",  # the task's own goes first
    }
    options = {"split": "test", "task": "mine", "verifier": "exact"}
    layout = task_layout(config, "mine")
    (record,) = read_source(config.tasks.mine.test, config, layout=layout, **options)
    assert (record.prompt, record.verifier) == ("Colour?\nIn one word.", "exact")
    assert record.answer == "black"
    assert record.system == "You see x." and shown(record) == [3]


def test_a_format_may_name_a_verifier_of_ones_own(tmp_path):
    own = "tests.rewards.test_verifiers:within"
    published_files.put(tmp_path / "a.jsonl", {"ask": "?", "gold": "7"})
    config = small_config()
    config.tasks.mine = {"format": {"prompt": "{ask}", "answer": "gold", "verifier": own}}
    layout = task_layout(config, "mine")
    source = str(tmp_path / "a.jsonl")
    (record,) = read_source(source, config, split="test", task="mine", layout=layout)
    assert record.verifier == own


def test_images_in_a_folder_of_their_own(tmp_path):
    published_files.put(tmp_path / "rows/a.jsonl", {"prompt": "?", "answer": "x", "image": "3.png"})
    published_files.put(tmp_path / "shown/3.png", published_files.picture(3))
    config = small_config()
    config.tasks.mine = {"test": str(tmp_path / "rows/a.jsonl")}
    config.tasks.mine.image_folder = str(tmp_path / "shown")
    layout = task_layout(config, "mine")
    (record,) = read_source(config.tasks.mine.test, config, split="test", task="m", layout=layout)
    assert shown(record) == [3]


@pytest.mark.parametrize(
    "given,message",
    [
        ("scienceq", r"config.tasks.mine.format is 'scienceq', expected one of .*'scienceqa'\?"),
        ({"prompt": "{x}\n{options}"}, r"mine.format prompt is .*no column has its {options}"),
        ({"promt": "{x}"}, r"config.tasks.mine.format has no field 'promt'.*'prompt'"),
        ({"images": "x"}, r"config.tasks.mine.format images is 'x', expected tuple"),
        ({"answer": ["x"]}, r"config.tasks.mine.format answer is \['x'\], expected str"),
        ({"verifier": "nope"}, r"config.tasks.mine.format unknown verifier 'nope'"),
    ],
)
def test_a_format_that_cannot_be(given, message):
    config = small_config()
    config.tasks.mine = {"format": given}
    with pytest.raises(ValueError, match=message):
        task_layout(config, "mine")


@pytest.mark.parametrize(
    "answer,options,letter",
    [
        (0, ["x", "y"], "A"),
        (1, ["x", "y"], "B"),
        ("y", ["x", "Y"], "B"),
        ("(b)", ["x", "y"], "B"),
        ("B) y", ["x", "y"], "B"),
        ("1", ["3", "1"], "B"),  # a text, and no number
        ("A", ["B", "A"], "B"),
    ],
)
def test_the_letter_of_an_option(answer, options, letter):
    assert letter_of(answer, options) == letter


@pytest.mark.parametrize("answer", [2, -1, True, "z", "C", "", None, 0.0])
def test_no_letter_of_an_option(answer):
    with pytest.raises(ValueError, match=r"the number \(from 0\), the letter or the text of one"):
        letter_of(answer, ["x", "y"])


@pytest.mark.parametrize(
    "row,message",
    [
        ({"question": "?", "answer": 3, "choices": ["a", "b"]}, "answer: found 3, expected"),
        ({"question": "?", "answer": 0, "choices": 7}, "choices: expected a list of options"),
        ({"question": "?", "answer": 0, "choices": ["a"] * 27}, "found 27, expected at most 26"),
        ({"question": "?", "answer": 0, "choices": "['a', 'b"}, "expected a list, found"),
        ({"question": "?", "choices": ["a", "b"]}, "expected an answer in one of"),
        ({"question": "?", "answer": 0, "choices": []}, "choices: found no options, expected a"),
        (
            {"question": "?", "answer": None},
            r"\): answer: found nothing \(null\); expected an answer",
        ),
        ({"answer": 0, "choices": ["a", "b"]}, "expected a question in one of"),
    ],
)
def test_rows_that_a_layout_cannot_read(tmp_path, row, message):
    published_files.put(tmp_path / "a.jsonl", row)
    with pytest.raises(ValueError, match=rf"a.jsonl, line 1.*{message}"):
        load_records(tmp_path / "a.jsonl", task="t", layout=LAYOUTS["scienceqa"])


def test_fields_within_fields_and_the_first_that_holds_something(tmp_path):
    row = {"meta": {"ask": "Which?"}, "gold": None, "golds": [], "text": "", "label": 7}
    published_files.put(tmp_path / "a.jsonl", row)
    layout = Layout(prompt="{text|meta.ask}", answer="gold|golds|text|label")
    (record,) = load_records(tmp_path / "a.jsonl", task="t", layout=layout)
    assert (record.prompt, record.answer) == ("Which?", "7")


@pytest.mark.parametrize(
    "given,column",
    [
        ({"images": ["fotos"]}, "fotos"),
        ({"images": ["{nr}.png"]}, "nr"),
        ({"options": "choises"}, "choises"),
        ({"answer": "gold|label"}, "gold|label"),
        ({"prompt": "{meta.ask}\n{options}"}, "meta.ask"),
    ],
)
def test_columns_that_no_row_has(tmp_path, given, column):
    good = {"prompt": "{question}\n{options}", "answer": "n|answer", "options": "choices"}
    rows = [{"question": "?", "answer": "a", "meta": {"x": 1}}, {"choices": None}]
    published_files.put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    options = {"task": "t", "problems": []}
    load_records(tmp_path / "a.jsonl", layout=layout_of(good), **options)
    with pytest.raises(ValueError, match=rf"a.jsonl: found no column '{re.escape(column)}' in any"):
        load_records(tmp_path / "a.jsonl", layout=layout_of(good | given), **options)


@pytest.mark.parametrize(
    "options",
    [
        ["a dog, or so", "a cat"],
        {"A": "a dog, or so", "B": "a cat"},
        {"A": "a dog, or so", "B": "a cat", "C": None},
        "['a dog, or so', 'a cat']",
        '["a dog, or so", "a cat"]',
        "('a dog, or so', 'a cat')",
        "{'A': 'a dog, or so', 'B': 'a cat'}",
        '{"A": "a dog, or so", "B": "a cat", "C": null}',
        "A. a dog, or so\nB. a cat",
        "A. a dog, or so B. a cat",
        "(A) a dog, or so, (B) a cat",
        "a dog, or so\na cat",
    ],
)
def test_the_ways_in_which_options_are_written(tmp_path, options):
    given = {"prompt": "{question}\n{options}", "answer": "n", "options": "choices"}
    row = {"question": "Which?", "n": "B", "choices": options}
    published_files.put(tmp_path / "a.jsonl", row)
    (record,) = load_records(tmp_path / "a.jsonl", task="t", layout=layout_of(given))
    ends = ("A. a dog, or so\nB. a cat", "(A) a dog, or so\n(B) a cat")
    assert record.prompt.endswith(ends) and record.answer == "B"
    assert record.verifier == "choice"


@pytest.mark.parametrize(
    "options,message",
    [
        ("[]", "found no options"),
        ("{'X': 'a dog'}", "letters from A on"),
        ({"B": "a dog"}, "letters from A on"),
        ("{[1]: 2}", "expected a list"),
    ],
)
def test_options_that_are_none(tmp_path, options, message):
    given = {"prompt": "{question}\n{options}", "answer": "n", "options": "choices"}
    row = {"question": "Which?", "n": "B", "choices": options}
    published_files.put(tmp_path / "a.jsonl", row)
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path / "a.jsonl", task="t", layout=layout_of(given))
