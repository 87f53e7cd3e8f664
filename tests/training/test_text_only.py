"""The whole loop on a family without vision: records in JSONL, a small Qwen3 of random weights."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.models import from_config, save_pretrained
from rdbcl_jax.policy import load_policy
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.training.run import train
from tests import engine

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
WORDS = "system user assistant <think> </think> <answer> </answer> what is plus minus 0 1 2 3 4 5 6"
# the published models' form: a message's content is text, never a list of parts
TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def write_tokenizer(path):
    ids = {word: i for i, word in enumerate((*SPECIAL, *WORDS.split()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(["<think>", "</think>", "<answer>", "</answer>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    return ids


def write_model(path):
    ids = write_tokenizer(path)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": len(ids),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    (path / "config.json").write_text(json.dumps(config))
    model = from_config(path)
    params = model.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), params)
    save_pretrained(path, model, params, like=path)


def write_records(path, sign, count):
    rng = np.random.default_rng(count)
    rows = []
    for a, b in rng.integers(0, 4, (count, 2)).tolist():
        word, answer = ("plus", a + b) if sign > 0 else ("minus", abs(a - b))
        rows.append({"prompt": f"what is {a} {word} {b}", "answer": str(answer)})
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "model").mkdir()
    write_model(folder / "model")
    config = engine.small_config()
    config.model.path, config.sequence = str(folder / "model"), ("plus", "minus")
    with config.unlocked():
        for name, sign in (("plus", 1), ("minus", -1)):
            sources = {}
            for split, count in (("train", 32), ("validation", 8), ("test", 16)):
                write_records(folder / f"{name}-{split}.jsonl", sign, count)
                sources[split] = str(folder / f"{name}-{split}.jsonl")
            config.tasks[name] = sources
    with (folder / "plus-train.jsonl").open("a") as file:
        file.write('\n{"prompt": "what is"}')
    config.data.on_bad_record = "skip"
    config.training.steps, config.training.checkpoint_every = 3, 1
    return config


@pytest.mark.slow
def test_two_tasks(config, tmp_path):
    expected = train(config, tmp_path / "whole")
    assert expected.status == "done" and np.shape(expected.splits["test"].accuracy) == (3, 2)
    (left_out,) = (tmp_path / "whole/left_out.txt").read_text().splitlines()
    assert "plus-train.jsonl, line 33 " in left_out and "expected an answer" in left_out
    steps = read_run(tmp_path / "whole").steps
    assert len(steps) == 6 and steps[2]["kl"] > 0 and steps[3]["rp/mean"] == 1


def test_a_record_with_an_image_is_named(config, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
    row = {"id": "r-7", "prompt": "what is <image>", "image": "red.png", "answer": "4"}
    (tmp_path / "seen.jsonl").write_text(json.dumps(row))
    changed = RunConfig.of(config).to_dict()
    changed["tasks"]["minus"]["train"] = str(tmp_path / "seen.jsonl")
    with pytest.raises(ValueError, match=r"record 'r-7' has images, but the model reads text"):
        train(changed, tmp_path / "run")  # before anything is computed
    policy, _ = load_policy(RunConfig.of(config), engine.one_device())
    with pytest.raises(ValueError, match=r"record 'r-7' has images, but the model reads text"):
        policy.encoder.encode(load_records(tmp_path / "seen.jsonl", task="minus"))


def test_prompts_are_plain_text_to_the_chat_template(config):
    policy, _ = load_policy(RunConfig.of(config), engine.one_device())
    batch = policy.encoder.encode(load_records(config.tasks["plus"]["test"], task="plus")[:2])
    assert batch.model_inputs == () and batch.next_position.tolist() == [10, 10]
    text = policy.tokenizer.decode(batch.tokens[0][batch.mask[0]])
    assert text.startswith("<|im_start|> user what is ")
    assert text.endswith(" <|im_end|> <|im_start|> assistant")
