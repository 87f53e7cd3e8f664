"""The composite reward: weights, routing by task, and user functions in TRL's form."""

import asyncio
import dataclasses
import json
import math
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.records import Record
from rdbcl_jax.rewards import functions
from rdbcl_jax.rewards.calls import TrainerState
from rdbcl_jax.rewards.functions import FunctionFailed, load_function
from rdbcl_jax.rewards.scoring import RewardConfig, score
from rdbcl_jax.rewards.verifiers import get_verifier


def record(id="r0", task="sum", answer="7", verifier="exact", **columns):
    return Record(id, task, f"question of {id}", (), answer, verifier, columns)


def respond(answer, reasoning="so"):
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def test_default_reward_is_format_and_accuracy():
    texts = [respond("7"), respond("8"), "7", respond("7") + "!"]
    scores = score([record()] * 4, texts)
    np.testing.assert_allclose(scores.total, [1.2, 0.2, 0.0, 0.0])
    np.testing.assert_array_equal(scores.accuracy, [1, 0, 0, 0])
    np.testing.assert_array_equal(scores.components["format"], [1, 1, 0, 0])
    np.testing.assert_array_equal(scores.components["accuracy"], [1, 0, 0, 0])


def test_parse_failures_are_counted_apart_from_wrong_answers():
    scores = score([record()] * 3, [respond("8"), "7", respond("")])
    np.testing.assert_array_equal(scores.accuracy, [0, 0, 0])
    np.testing.assert_array_equal(scores.parsed, [True, False, False])
    assert scores.problems == (None, "no <think>", "nothing inside <answer>")


def test_the_jigsaw_reward_of_the_paper():
    """Hit fraction + all right + format (arXiv:2506.23508)."""
    config = RewardConfig(
        task_weights={"jigsaw": {"accuracy": 1.0, "correct": 1.0, "format": 1.0}},
    )
    puzzle = record(task="jigsaw", answer="2 1 3 4", verifier="jigsaw")
    texts = [respond("2 1 3 4"), respond("2 1 4 3"), respond("1 1 1 1"), "2 1 3 4"]
    scores = score([puzzle] * 4, texts, config)
    np.testing.assert_allclose(scores.total, [3.0, 1.5, 1.0, 0.0])
    np.testing.assert_array_equal(scores.accuracy, [1, 0, 0, 0])


def test_a_graded_verifiers_score_is_reward_and_accuracy():
    """VQA soft accuracy; of a jigsaw, three pieces in place are no right answer."""
    words = ("red",) * 3 + ("blue",) * 2 + ("green",) + ("grey",) * 4
    asked = Record("r0", "hue", "Which?", (), "grey", "vqa", answers=words)
    texts = [respond(word) for word in ("grey", "red", "blue", "green", "pink")]
    scores = score([asked] * 5, texts, RewardConfig(weights={"accuracy": 1.0, "correct": 1.0}))
    np.testing.assert_allclose(scores.accuracy, [1, 0.9, 0.6, 0.3, 0])
    np.testing.assert_allclose(scores.total, [2, 0.9, 0.6, 0.3, 0])
    puzzle = record(answer="1 2 3 4", verifier="jigsaw")
    scores = score([asked, puzzle], [respond("red"), respond("1 2 4 3")])
    np.testing.assert_allclose(scores.components["accuracy"], [0.9, 0.5])
    np.testing.assert_allclose(scores.accuracy, [0.9, 0])


def test_rewards_apply_to_the_tasks_whose_weights_list_them():
    called = []

    def brief(prompts, completions, **columns):
        called.extend(columns["id"])
        return [0.5 for _ in completions]

    config = RewardConfig(
        weights={"accuracy": 1.0},
        task_weights={"essay": {"format": 0.0, "brief": 2.0}},
        functions={"brief": brief},
    )
    records = [record("a"), record("b", task="essay")]
    scores = score(records, [respond("7")] * 2, config)
    np.testing.assert_allclose(scores.total, [1.0, 1.0])
    np.testing.assert_array_equal(scores.components["accuracy"], [1.0, np.nan])
    np.testing.assert_array_equal(scores.components["brief"], [np.nan, 0.5])
    np.testing.assert_array_equal(scores.components["format"], [np.nan, 1.0])  # logged, weight 0
    np.testing.assert_array_equal(scores.accuracy, [1, 1])  # evaluation needs no weight
    assert called == ["b"]


def test_functions_get_trl_arguments_and_the_columns():
    def check(prompts, completions, answer, task, id, solution, hint, **others):
        assert prompts == ["question of a", "question of b"]
        assert completions == ["x", "y"]
        assert (answer, task, id) == (["7", "7"], ["sum", "sum"], ["a", "b"])
        assert (solution, hint) == (["s", None], [None, "h"])
        assert others.keys() == {"completion_ids", "trainer_state", "log_metric", "log_extra"}
        return [1, None]

    records = [record("a", solution="s"), record("b", hint="h")]
    config = RewardConfig(weights={"check": 2.0}, functions={"check": check})
    scores = score(records, ["x", "y"], config)
    np.testing.assert_array_equal(scores.components["check"], [1.0, np.nan])
    np.testing.assert_array_equal(scores.total, [2.0, np.nan])  # nothing applies to the second


def test_an_answer_that_its_row_lacks_is_the_gold_one():
    def check(prompts, completions, answer, solution, **others):
        assert (answer, solution) == (["7"], ["5"])
        return [1]

    rewards = RewardConfig(weights={"check": 1.0}, functions={"check": check})
    columns = {"answer": None, "solution": "5"}
    score([dataclasses.replace(record("a"), columns=columns)], ["x"], rewards)


@pytest.fixture
def rows(tmp_path):
    """Records as TRL's users have them: a chat with an image, a text, a VLM-R1 conversation."""
    Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Which hue?"}]
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "so"}]
    found = [
        {"prompt": asked, "image": "red.png", "solution": "<answer>red</answer>", "level": 3},
        {"prompt": "How many?", "answer": 2, "problem": "other", "completion": "not a column"},
        {"conversations": turns, "image": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, found)))
    return list(load_records(tmp_path / "rows.jsonl", task="t")), found


def test_chats_get_chats_and_every_column_arrives(rows):
    records, found = rows
    seen = {}

    def check(completions, trainer_state, log_metric, log_extra, **others):
        seen.update(others, completions=completions)
        log_metric("kindness", 1.0)
        log_metric("kindness", 2.0)
        log_extra("judged", [trainer_state.global_step, None, "no"])
        said = [c[0]["content"] if isinstance(c, list) else None for c in completions]
        return [text and float(text == "red") for text in said]

    config = RewardConfig(weights={"check": 1.0}, functions={"check": check})
    ids = [np.array([5, 6], np.int32), np.array([7], np.int32), []]
    scores = score(
        records, ["red", "2", "x"], config, completion_ids=ids, trainer_state=TrainerState(3, 9)
    )
    np.testing.assert_array_equal(scores.components["check"], [1.0, np.nan, 0.0])
    assert scores.metrics == {"kindness": 1.5} and scores.extra == {"judged": ["3", None, "no"]}
    why = [{"role": "user", "content": "Why?"}]
    assert seen["prompts"] == [found[0]["prompt"], "How many?", why]
    assert seen["completions"][1] == "2"
    assert seen["completions"][2] == [{"role": "assistant", "content": "x"}]
    assert seen["completion_ids"] == [[5, 6], [7], []]
    assert seen["solution"] == ["<answer>red</answer>", None, None] and seen["level"] == [
        3,
        None,
        None,
    ]
    assert seen["answer"] == ["red", 2, "so"]  # raw where a row has it
    assert seen["problem"] == [None, "other", None] and "completion" not in seen
    assert seen["conversations"][2] == found[2]["conversations"]
    assert [image and image.size for image in seen["image"]] == [(4, 3), None, None]
    assert [len(images) for images in seen["images"][:3]] == [1, 0, 0]
    assert seen["image"][0].getpixel((0, 0)) == (255, 0, 0)
    assert seen["image"][0] is seen["image"][0]  # decoded once


def test_a_function_may_change_what_it_gets(rows):
    """Nothing of it reaches the records, another completion of the same, or a later call."""
    (chat, *_), found = rows
    box = record("a", boxes=[[1, 2], {"at": [3]}])

    def spoil(prompts, boxes=None, **columns):
        for messages in prompts:
            if isinstance(messages, list):
                assert messages == found[0]["prompt"]
                messages.pop()["content"] = "spoilt"
        for own in filter(None, boxes or []):
            assert own == [[1, 2], {"at": [3]}]
            own[0].append(own[1]["at"].pop())
        return [1.0] * len(prompts)

    config = RewardConfig(weights={"spoil": 1.0}, functions={"spoil": spoil})
    for _ in range(2):
        assert score([chat, box, chat, box], [""] * 4, config).total.tolist() == [1.0] * 4


def test_async_functions_run_side_by_side_and_keep_one_loop():
    loops = []
    both = threading.Barrier(2, timeout=5)

    async def slow(completions, **_):
        loops.append(asyncio.get_running_loop())
        await asyncio.to_thread(both.wait)  # until the other one is there
        return [1.0, None]

    async def broken(completions, id, **_):
        await asyncio.sleep(0)
        return [1 / (name != "b") for name in id]

    config = RewardConfig(weights={"a": 1.0, "b": 2.0}, functions={"a": slow, "b": slow})
    records = [record("a"), record("b")]
    for _ in range(2):
        np.testing.assert_array_equal(score(records, ["", ""], config).total, [3.0, np.nan])
    assert len(set(loops)) == 1 and len(loops) == 4
    with pytest.raises(FunctionFailed, match="'c' raised ZeroDivisionError on record 'b': div"):
        score(records, ["", ""], RewardConfig(weights={"c": 1}, functions={"c": broken}))


def test_functions_in_files_beside_the_config(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "CALLS = []\ndef brief(completions, **_):\n    CALLS.append(1)\n"
        "    return [len(c) < 5 for c in completions]\n"
        "def close(answer, gold, by=1.0):\n    return abs(int(answer) - int(gold)) <= by\n"
    )
    (tmp_path / "broken.py").write_text("def f(:\n")
    # without the folders of configs that other tests have read
    here = [place for place in sys.path if "pytest" not in place or "site-packages" in place]
    monkeypatch.setattr(sys, "path", [*here, str(tmp_path)])
    config = RewardConfig(weights={"brief": 1.0}, functions={"brief": "mine.py:brief"})
    np.testing.assert_array_equal(score([record()] * 2, ["abc", "abcdef"], config).total, [1, 0])
    # by a path of its own it is the same module
    assert load_function("f", f"{tmp_path}/mine.py:CALLS") == [1]
    assert (
        get_verifier("mine.py:close").score("8", "7")
        == 1
        == get_verifier(f"{tmp_path}/mine.py:close:3").score("9", "7")
    )
    assert get_verifier("mine.py:close").score("9", "7") == 0
    for name, message in [
        ("none.py:f", "no file 'none.py' here or beside the config"),
        ("broken.py:f", r"cannot import 'broken.py:f': invalid syntax .*broken.py, line 1"),
        ("mine.py:breif", "'f': mine.py has no function 'breif'; did you mean 'brief'"),
        ("mine.py", "expected package.module:function or file.py:function"),
    ]:
        with pytest.raises(ValueError, match=message):
            RewardConfig(weights={"f": 1.0}, functions={"f": name})


def test_rewards_of_length_and_repetition():
    """DAPO's soft buffer, equation 13, and repeated runs as TRL counts them."""
    functions = {"long": "overlong:10:4", "again": "repetition:2"}
    config = RewardConfig(weights={"long": 1.0, "again": 2.0}, functions=functions)
    ids = [range(6), range(7), range(10), range(99), [1, 2, 3, 4], [5] * 5, [1, 2, 1, 2], [7], []]
    scores = score([record()] * len(ids), [""] * len(ids), config, completion_ids=ids)
    np.testing.assert_allclose(scores.components["long"], [0, -0.25, -1, -1, 0, 0, 0, 0, 0])
    again = [0, 0, 0, 0, 0, -0.75, -1 / 3, 0, 0]
    np.testing.assert_allclose(scores.components["again"], again)
    for name in ("overlong:10", "overlong:4:5", "overlong:9:0", "overlong:9:x", "repetition:0.5"):
        with pytest.raises(ValueError, match=r"overlong|repetition|convert"):
            RewardConfig(weights={"f": 1.0}, functions={"f": name})


def test_what_hangs_is_named(monkeypatch, capsys):
    monkeypatch.setattr(functions, "PATIENCE", 0.05)

    def slow(completions, **_):
        time.sleep(0.2)
        return [0.0]

    score([record("a")], [""], RewardConfig(weights={"slow": 1.0}, functions={"slow": slow}))
    assert (
        "reward function 'slow' on record 'a' has been running for 0 s; Ctrl-C"
        in capsys.readouterr().err
    )
    mine = record("b", verifier="tests.rewards.test_scoring:sleepy")
    score([record("a"), mine], [respond("7")] * 2)
    assert "verifier 'tests.rewards.test_scoring:sleepy' on record 'b'" in capsys.readouterr().err
    score([record("a")], [respond("7")])
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def sleepy(answer, gold):
    time.sleep(0.2)
    return 1.0


def test_functions_may_be_named_in_a_configuration():
    config = RewardConfig(weights={"m": 1.0}, functions={"m": "math:fsum"})
    assert config.functions["m"] is math.fsum
    for bad, found in [
        ("math", "package.module"),
        ("math:nope", "nope"),
        ("nope.no:f", "nope"),
        (":f", "file.py"),
    ]:
        with pytest.raises(ValueError, match=found):
            RewardConfig(weights={"m": 1.0}, functions={"m": bad})


def test_a_function_that_raises_is_named_with_its_record():
    def picky(prompts, completions, **columns):
        return [1 / (0 if id == "b" else 1) for id in columns["id"]]

    config = RewardConfig(weights={"picky": 1.0}, functions={"picky": picky})
    with pytest.raises(FunctionFailed, match=r"'picky' raised ZeroDivisionError on record 'b'"):
        score([record("a"), record("b")], ["", ""], config)


def test_a_function_that_raises_on_the_batch_alone():
    def lonely(prompts, completions, **columns):
        assert len(prompts) < 2, "too many"
        return [0.0]

    config = RewardConfig(weights={"lonely": 1.0}, functions={"lonely": lonely})
    with pytest.raises(FunctionFailed, match=r"'lonely' .* records 'a' to 'b' together: too m"):
        score([record("a"), record("b")], ["", ""], config)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], r"'f': expected 2 values.*'a' to 'b'.*found 1"),
        (None, r"'f': expected 2 values.*found NoneType"),
        (1.0, r"'f': expected 2 values.*found float"),
        ([1.0, math.nan], r"'f' returned nan for record 'b'"),
        ([math.inf, 1.0], r"'f' returned inf for record 'a'"),
        ([1.0, "good"], r"'f' returned 'good' for record 'b'"),
        (["1", "0"], r"'f' returned '1' for record 'a'"),
        ([1.0, b"1"], r"'f' returned b'1' for record 'b'"),
        ({1.0: "a", 0.0: "b"}, r"'f': expected 2 values.*found dict"),
        ({1.0, 0.0}, r"'f': expected 2 values.*found set"),
        ("10", r"'f': expected 2 values.*found str"),
        (b"10", r"'f': expected 2 values.*found bytes"),
        ([1.0, -1e300], r"'f' returned -1e\+300 for record 'b'; expected a number within ±1e\+15"),
    ],
)
def test_a_function_that_returns_something_wrong(returned, message):
    config = RewardConfig(weights={"f": 1.0}, functions={"f": lambda **_: returned})
    with pytest.raises(ValueError, match=message):
        score([record("a"), record("b")], ["", ""], config)


def test_weights_that_make_too_much_of_a_reward():
    config = RewardConfig(weights={"f": 1e10}, functions={"f": lambda **_: [1e4, 1e6]})
    with pytest.raises(ValueError, match=r"reward of record 'b' is 1e\+16, .* \{'f': 1000000.0\}"):
        score([record("a"), record("b")], ["", ""], config)


def too_sure(answer, gold):
    """A verifier that returns something wrong."""
    return 1.5


def test_a_verifier_that_returns_something_wrong_is_named_with_its_record():
    mine = record("b", verifier="tests.rewards.test_scoring:too_sure")
    with pytest.raises(ValueError, match=r"record 'b': verifier '.*too_sure' returned 1.5"):
        score([record("a"), mine], [respond("7")] * 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": {"acuracy": 1.0}}, "'acuracy': no such reward"),
        ({"weights": {"accuracy": math.nan}}, "finite"),
        ({"functions": {"f": len}}, r"\['f'\] have no weight"),
        ({"functions": {"format": len}}, "built in"),
        ({"if_correct": ("length",)}, r"\['length'\] have no weight"),
    ],
)
def test_mistakes_in_a_configuration(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**kwargs)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 records for 2 completions"):
        score([record()], ["", ""])


def test_no_completions():
    scores = score([], [])
    assert scores.total.shape == scores.accuracy.shape == scores.parsed.shape == (0,)


def test_hole_a_cosine_length_reward_overwrites_a_wrong_answer_with_full_pay():
    def cosine(prompts, completions, **columns):
        return [(1 + math.cos(math.pi * min(1, len(text) / 1000))) / 2 for text in completions]

    config = RewardConfig(
        weights={"accuracy": 1.0, "length": 1.0},
        functions={"length": cosine},
        if_correct=("length",),
    )
    texts = [respond("7"), respond("8"), "", respond("7", "so " * 200)]
    right, wrong, empty, long = score([record()] * 4, texts, config).total
    assert wrong == empty == 0
    assert 1 < long < right <= 2


def test_hole_rewards_are_silently_zero_in_threads():
    totals = []
    fraction = record(answer=r"\frac{1}{2}", verifier="math")

    def work():
        totals.append(score([fraction], [respond("0.5")]).total[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(totals, [1.2] * 4)


def test_hole_reward_and_evaluation_disagree():
    """Both are one function: accuracy does not depend on the reward's weights."""
    texts = [respond("7"), "The answer is 7", respond("8"), respond("7.")]
    kinder = RewardConfig(weights={"format": 1.0})
    np.testing.assert_array_equal(
        score([record()] * 4, texts).accuracy, score([record()] * 4, texts, kinder).accuracy
    )
