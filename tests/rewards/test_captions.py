"""CIDEr-D against numbers worked out by hand."""

import dataclasses
import math

import pytest

from rdbcl_jax.data.records import Record
from rdbcl_jax.evaluation import judged_over_splits, other_measures, over_splits
from rdbcl_jax.rewards.captions import Cider, words
from rdbcl_jax.rewards.scoring import score
from rdbcl_jax.rollout.scored import ScoredRollouts

TWO = [["a dog runs on grass"], ["two birds sit there now"]]


def test_a_caption_like_its_only_reference_scores_ten():
    assert Cider(TWO)(0, "A dog runs on grass.") == pytest.approx(10)


def test_that_of_another_picture_scores_nothing():
    assert Cider(TWO)(0, "two birds sit there now") == 0
    assert Cider(TWO)(0, "") == 0


def test_lengths_that_a_text_does_not_have_count_nothing():
    # three words: no n-gram of four, so three cosines of 1 out of four
    assert Cider([["a red car"], ["two birds"]])(0, "a red car") == pytest.approx(7.5)


def test_half_of_a_reference():
    # all n-grams are of one picture only, so all weigh log 2. "a b" against "a b c d":
    # words: 2 shared, norms √2 and √4; pairs: 1 shared, norms 1 and √3; two words shorter
    found = Cider([["a b c d"], ["x y z"]])(0, "a b")
    cosines = 2 / math.sqrt(2 * 4) + 1 / math.sqrt(3)
    assert found == pytest.approx(10 / 4 * cosines * math.exp(-4 / 72))


def test_repeating_a_word_pays_once():
    # "a a a a" against "a b": min(4, 1) · 1 over norms 4 and √2; no shared pair; two words longer
    found = Cider([["a b"], ["x y"]])(0, "a a a a")
    assert found == pytest.approx(10 / 4 * (1 / (4 * math.sqrt(2))) * math.exp(-4 / 72))


def test_words_of_every_picture_weigh_nothing_and_rarer_ones_more():
    # of three pictures: "a" in all (weight 0), "dog" in two (log 1.5), "red" in one (log 3)
    three = [["a red dog"], ["a dog"], ["a bird"]]
    dog, red = math.log(1.5), math.log(3)
    ones = dog * dog / (dog * math.hypot(dog, red))
    assert Cider(three)(0, "a a dog") == pytest.approx(
        10 / 4 * ones  # pairs "a a", "a dog" against "a red", "red dog": none shared
    )


def test_several_references_are_averaged():
    refs = [["a b c d", "w x y z"], ["k l m n"]]
    assert Cider(refs)(0, "a b c d") == pytest.approx(5)


def test_words():
    assert words("It's a dog's bone, isn't it?") == [
        "it",
        "'s",
        "a",
        "dog",
        "'s",
        "bone",
        "is",
        "n't",
        "it",
    ]
    assert words("A well-known 3.5-litre JAR") == ["a", "well-known", "3.5-litre", "jar"]
    assert words("Über ’em — “all”") == ["über", "em", "all"]


def test_evaluation_reports_it_over_the_split_and_rewards_do_not():
    captions = [
        Record(str(i), "photos", "?", (), refs[0], "caption", answers=refs)
        for i, refs in enumerate([("a dog runs on grass", "a dog runs"), ("two birds sit there",)])
    ]
    other = Record("0", "sums", "2 + 2?", (), "4", "exact")
    answers = ["A dog runs on grass", "a dog runs fast", "4"]
    records = [*captions, other]
    texts = [f"<think>seen</think><answer>{answer}</answer>" for answer in answers]
    plain = score(records, texts)
    assert plain.accuracy.tolist() == plain.components["accuracy"].tolist() == [1, 0, 1]
    cider = Cider([record.answers for record in captions])
    # two splits of one task may be two sources whose ids are the same
    again = [dataclasses.replace(record, answers=("a red car",)) for record in captions]
    judges = over_splits([captions, [other], again])
    assert [*judges] == [0, 1, 3, 4]
    scored = ScoredRollouts(None, records, texts, plain, None, None)
    found = judged_over_splits(scored, (0, 1, 2), judges).scores
    assert found.accuracy.tolist() == [cider(0, answers[0]), cider(1, answers[1]), 1]
    assert 5 < found.accuracy[0] < 10 and found.total.tolist() == plain.total.tolist()
    unparsed = dataclasses.replace(scored, texts=["a dog runs on grass", *texts[1:]])
    assert judged_over_splits(unparsed, (0, 1, 2), judges).scores.accuracy[0] == 0
    assert judged_over_splits(scored, (0, 1, 2), over_splits([[other]])) is scored
    assert other_measures({"sums": [other], "photos": captions}) == {"photos": "CIDEr-D"}
