"""What is Gemma 3's own: sliding layers, pictures seen in both directions, its prompts and options,
and the model without vision. What all families keep is in the contract."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, normalizers

from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record
from rdbcl_jax.models import (
    from_config,
    from_pretrained,
    read_config,
    read_processor,
    read_tokenizer,
    save_pretrained,
)
from rdbcl_jax.models.gemma3.tiny import write_tiny
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling
from tests.models.case_gemma3 import TEXT, TOKENS
from tests.models.contract import IMAGE, pair, processed, torch_logits
from tests.models.oracle import checkpoint, worst

NARROW = (("sliding_window", 3),)
PROMPTS = (([3, "image", 4], "left"), ([7], "left"))


def greedy(model, params, inputs, length):
    run = jax.jit(sample, static_argnums=0, static_argnames=("samples", "sampling"))
    options = {"samples": 1, "sampling": Sampling(length, greedy=True)}
    rollouts = run(model, params, model.prepare(**inputs), jax.random.key(0), **options)
    return rollouts.tokens[:, 0]


def torch_greedy(model, inputs, length):
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    options = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None}
    return model.generate(**tensors, **options, pad_token_id=0)[:, -length:].numpy()


# ---------------------------------------------------------------------- windows and directions


def test_windows_narrower_than_a_response():
    """Tokens of a response leave the window of those after them, the prompt's before."""
    models, inputs = pair("gemma3", text=NARROW), processed("gemma3", *PROMPTS)
    model, length = models.model, 10
    expected = torch_greedy(models.torch_model, inputs, length)
    np.testing.assert_array_equal(greedy(model, models.params, inputs, length), expected)
    whole = {
        "input_ids": np.concatenate([inputs["input_ids"], expected], 1),
        "attention_mask": np.pad(
            inputs["attention_mask"], ((0, 0), (0, length)), constant_values=1
        ),
        "token_type_ids": np.pad(inputs["token_type_ids"], ((0, 0), (0, length))),
        "pixel_values": inputs["pixel_values"],
    }
    with torch.no_grad():
        logits = torch_logits(models.torch_model, whole).numpy()[:, -length - 1 : -1]
    mask = np.ones((2, 1, length), bool)
    hidden = jax.jit(model.response_hidden)(
        models.params, model.prepare(**inputs), expected[:, None], mask
    )
    assert worst(hidden[:, 0] @ model.lm_head(models.params), logits) <= 1e-4


def test_kernels_fit_text_within_a_window_alone():
    """Where they do not, scores are held, and layouts and plans count them."""
    model = pair("gemma3").model
    text, seen = (model.prepare(**processed("gemma3", p)) for p in (([7], "left"), PROMPTS[0]))
    window = model.config.text.window
    assert model.fits_kernels(text, window) and not model.fits_kernels(text, window + 1)
    assert not model.fits_kernels(seen, 8)
    wide = dataclasses.replace(model.config.text, head_dim=256)
    wide = dataclasses.replace(model, config=dataclasses.replace(model.config, text=wide))
    assert not wide.fits_kernels(text, 8)


def test_an_image_is_seen_in_both_directions():
    models, inputs = pair("gemma3"), processed("gemma3", *PROMPTS)
    mask = inputs["attention_mask"]
    found = models.model.logits(models.params, **inputs)
    # the placeholders say what the processor's types do
    untyped = {name: array for name, array in inputs.items() if name != "token_type_ids"}
    np.testing.assert_array_equal(models.model.logits(models.params, **untyped), found)
    causal = inputs | {"token_type_ids": np.zeros_like(inputs["token_type_ids"])}
    with torch.no_grad():
        expected = torch_logits(models.torch_model, causal).numpy()
    backwards = models.model.logits(models.params, **causal)
    assert worst(backwards, expected, mask) <= 1e-4
    assert worst(backwards, found, mask) > 1e-2


def test_long_contexts_of_the_layers_that_see_the_whole_text():
    """Gemma 3 from 4B on stretches their rotary embeddings by 8, the sliding layers' not."""
    rope = json.loads(json.dumps(TEXT["rope_parameters"]))
    rope["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    config = transformers.Gemma3TextConfig(**TEXT | {"rope_parameters": rope})
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(config).eval()
    ours, params = from_pretrained(checkpoint(model), dtype="float32")
    text = ours.config.text
    assert text.rope.frequencies[0] == 1 / 8 and text.sliding_rope.frequencies[0] == 1
    inputs = processed("gemma3", ([30], "left"), ([21], "right"))
    del inputs["token_type_ids"]
    with torch.no_grad():
        expected = torch_logits(model, inputs).numpy()
    assert worst(ours.logits(params, **inputs), expected, inputs["attention_mask"]) <= 1e-4


# ---------------------------------------------------------------------- without vision


def test_the_model_without_vision(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**TEXT)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    path = checkpoint(theirs)
    model, params = from_pretrained(path, dtype="float32")
    inputs = processed("gemma3", ([14], "left"), ([5], "left"))
    del inputs["token_type_ids"]
    save_pretrained(tmp_path, model, params)
    assert (
        load_file(tmp_path / "model.safetensors").keys()
        == load_file(path / "model.safetensors").keys()
    )
    again, report = transformers.Gemma3ForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        expected = torch_logits(again.eval(), inputs).numpy()
    assert worst(model.logits(params, **inputs), expected, inputs["attention_mask"]) <= 1e-4
    tokens = torch_greedy(again, inputs, 12)
    np.testing.assert_array_equal(greedy(model, params, inputs, 12), tokens)


# ---------------------------------------------------------------------- prompts

TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}
{% for part in message.content %}\
{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text | trim }}{% endif %}\
{% endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
SPECIAL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    *("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The tiny model with a tokenizer of Gemma's kind, in which blank lines join into tokens."""
    path = write_tiny(tmp_path_factory.mktemp("gemma3"), ("sum",))
    letters = [*map(chr, range(32, 127)), "\u2581", "\n"]
    lines = ["\n" * n for n in range(2, 7)]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters, *lines])}
    merges = [("\n" * a, "\n" * (n - a)) for n in range(2, 7) for a in range(n - 1, 0, -1)]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: f"<{name[:-6]}>" for name in ("pad_token", "eos_token", "bos_token", "unk_token")},
        additional_special_tokens=SPECIAL[4:],
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "image_token": "<image_soft_token>",
            "eoi_token": "<end_of_image>",
        },
        padding_side="left",
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"] |= {"vocab_size": len(vocab), "pad_token_id": 0}
    names = ("boi_token_index", "image_token_index", "eoi_token_index")
    config |= dict(zip(names, (vocab[token] for token in SPECIAL[-3:]), strict=True))
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 5], "pad_token_id": 0}')
    return path


def record(prompt, *sizes):
    images = tuple(Image.new("RGB", size, (90, 30, 200)) for size in sizes)
    return Record("r", "sum", prompt, images, "4", "exact", {})


def test_prompts_are_the_processors_where_blank_lines_join(path):
    """The processor writes blank lines around an image before the text becomes tokens."""
    records = [
        record("What is it?", (64, 48)),
        record("One <image> and\n\n<image>\nanother", (31, 90), (7, 7)),
        record("Nothing to see"),
    ]
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessorPil.from_pretrained(path),
        tokenizer=transformers.AutoTokenizer.from_pretrained(path),
        image_seq_length=TOKENS,
    )
    encoder = PromptEncoder(read_tokenizer(path), read_processor(path))
    chats = []
    for one in records:
        prompt = one.prompt if "<image>" in one.prompt else "<image>" * len(one.images) + one.prompt
        first, *others = [{"type": "text", "text": text} for text in prompt.split("<image>")]
        content = [first, *(part for text in others for part in ({"type": "image"}, text))]
        chats.append([{"role": "user", "content": [p for p in content if p.get("text", True)]}])
    template = processor.tokenizer.apply_chat_template
    texts = [template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    images = [list(one.images) for one in records]
    expected = processor(text=texts, images=images, padding=True, return_tensors="np")
    found = encoder.encode(records)
    np.testing.assert_array_equal(found.tokens, expected["input_ids"])
    np.testing.assert_array_equal(found.mask, expected["attention_mask"])
    types = np.asarray(expected["token_type_ids"])
    np.testing.assert_array_equal(found.model_inputs.spans >= 0, types == 1)
    joined = encoder.tokenizer.convert_tokens_to_ids("\n\n\n")  # "user", a line, and two
    assert (found.tokens == joined).any()


# ---------------------------------------------------------------------- published configs

# as on the Hub: what is left out is the class's default
PUBLISHED_4B = {
    "model_type": "gemma3",
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "image_token_index": 262144,
    "eos_token_id": [1, 106],
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


def test_the_published_4b(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_4B))
    model = from_config(tmp_path)
    text, shapes = model.config.text, model.abstract_params()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6) == 4300  # as published, the embedding once
    assert model.config.eos_token_ids == (1, 106) and model.config.image_tokens == 256
    assert (text.heads, text.kv_heads, text.head_dim, text.tied) == (8, 4, 256, True)
    assert text.sliding[:12] == (True, True, True, True, True, False) * 2
    assert (text.window, text.score_scale) == (1024, 256**-0.5)
    full, sliding = text.rope.frequencies, text.sliding_rope.frequencies
    assert (full[0], sliding[0]) == (1 / 8, 1.0)
    np.testing.assert_allclose(full[-1] * 8, 1e6 ** (2 / 256 - 1), rtol=1e-5)
    np.testing.assert_allclose(sliding[-1], 1e4 ** (2 / 256 - 1), rtol=1e-5)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change",
    [
        {"final_logit_softcapping": 30.0},
        {"attn_logit_softcapping": 50.0},
        {"use_bidirectional_attention": True},
        {"hidden_activation": "relu"},
        {"attention_bias": True},
    ],
)
def test_options_that_no_published_gemma3_has_are_refused(change, tmp_path):
    config = json.loads((pair("gemma3").path / "config.json").read_text())
    config["text_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (name,) = change
    with pytest.raises(ValueError, match=rf"config\.json: {name}.* is not supported"):
        read_config(tmp_path)


def test_tokens_of_an_image_that_are_no_averages_of_squares(tmp_path):
    config = json.loads((pair("gemma3").path / "config.json").read_text())
    for tokens in (15, 9):
        (tmp_path / "config.json").write_text(json.dumps(config | {"mm_tokens_per_image": tokens}))
        with pytest.raises(ValueError, match=f"mm_tokens_per_image {tokens} of 8 × 8 patches"):
            read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pan_and_scan": True}, "do_pan_and_scan of preprocessor_config.json is not supported"),
        ({"size": {"height": 64, "width": 64}}, "the model reads 32 × 32 pixels"),
    ],
)
def test_pictures_of_another_kind_are_refused(change, message, tmp_path):
    write_tiny(tmp_path, ("sum",))
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_processor(tmp_path)


def test_limits_of_pixels_do_not_apply(tmp_path):
    write_tiny(tmp_path, ("sum",))
    with pytest.raises(ValueError, match="every image becomes 32 × 32 pixels; leave both at 0"):
        read_processor(tmp_path, max_pixels=5000)


def test_the_sampler_never_draws_a_picture():
    assert pair("gemma3").model.config.forbidden_token_ids == (IMAGE, 101, 102)
