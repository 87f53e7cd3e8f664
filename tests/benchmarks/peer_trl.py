"""Worker: a step of TRL's GRPOTrainer, unchanged, on a random Qwen2 or Qwen2.5-VL of equal sizes.

The trainer runs its own loop; before every step it waits until the runner asks for one. Its
methods are timed from outside: the host's share is tokenizing, processing pictures and scoring.
Gradient checkpointing is off, as rematerialisation is in ours.
"""

from __future__ import annotations

import math
import os
import tempfile
import time

import datasets
import numpy as np
import torch
import transformers
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.channel import Channel, Memory, versions
from tests.benchmarks.pictures import mrope_section, processor_options, random_images
from tests.benchmarks.words import word_prompts, word_tokenizer
from tests.benchmarks.workload import MERGE, PATCH, TEMPORAL, WINDOW, Workload

STEPS = 10**6  # more than anybody asks for


def write_model(w: Workload, path: str) -> None:
    text = {
        "vocab_size": w.vocab_size,
        "hidden_size": w.width,
        "intermediate_size": w.mlp_width,
        "num_hidden_layers": w.depth,
        "num_attention_heads": w.heads,
        "num_key_value_heads": w.kv_heads,
        "head_dim": w.head_dim,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4 * (w.prompt_length + w.response_length),
        "bos_token_id": None,
        "eos_token_id": w.special["<|im_end|>"],
        "pad_token_id": w.special["<|endoftext|>"],
    }
    torch.manual_seed(0)
    if w.vision is None:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**text))
    else:
        model = transformers.Qwen2_5_VLForConditionalGeneration(_vision_config(w, text))
    model.save_pretrained(path)


def _vision_config(w: Workload, text: dict) -> transformers.Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(mrope_section(w))}
    return transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "depth": w.vision.depth,
            "hidden_size": w.vision.width,
            "intermediate_size": w.vision.mlp_width,
            "num_heads": w.vision.heads,
            "out_hidden_size": w.width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "window_size": WINDOW,
            "fullatt_block_indexes": list(w.vision.full_attention_layers),
        },
        tie_word_embeddings=True,
        image_token_id=w.special["<|image_pad|>"],
        video_token_id=w.special["<|video_pad|>"],
        vision_start_token_id=w.special["<|vision_start|>"],
        vision_end_token_id=w.special["<|vision_end|>"],
    )


class ImageProcessor(transformers.Qwen2_5_VLProcessor):
    """The model's processor without its video part, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)


def processing_class(w: Workload):
    tokenizer = word_tokenizer(w)
    if w.vision is None:
        return tokenizer
    image_processor = transformers.Qwen2VLImageProcessorPil(**processor_options(w))
    return ImageProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def dataset(w: Workload) -> datasets.Dataset:
    texts = word_prompts(w, 8 * w.prompts)
    if w.vision is None:
        return datasets.Dataset.from_dict({"prompt": texts})
    messages = [[{"role": "user", "content": text}] for text in texts]
    return datasets.Dataset.from_dict({"prompt": messages, "image": random_images(w, len(texts))})


def lengths(w: Workload) -> dict:
    """All as long as can be, or an end that is as likely at each token as `mean_length` asks: other
    logits are next to 0, since the model is random."""
    end, others = w.special["<|im_end|>"], set(w.special.values())
    if w.mean_length is None:
        return {"min_new_tokens": w.response_length, "suppress_tokens": [*others]}
    bias = math.log(w.vocab_size / (w.mean_length - 1))
    return {"suppress_tokens": [*others - {end}], "sequence_bias": [[[end], bias]]}


def trainer_config(w: Workload, out: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=w.prompts * w.samples,
        gradient_accumulation_steps=1,
        num_generations=w.samples,
        max_completion_length=w.response_length,
        generation_kwargs=lengths(w),
        temperature=1.0,
        beta=w.kl_beta,
        loss_type="grpo",
        learning_rate=w.learning_rate,
        lr_scheduler_type="constant",
        max_steps=STEPS,
        bf16=w.dtype == "bfloat16",
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


class Stopwatch:
    """Seconds spent in a trainer's methods, in the present step."""

    def __init__(self, trainer: GRPOTrainer):
        self.seconds: dict[str, float] = {}
        self.even = "min_new_tokens" in trainer.args.generation_kwargs
        self.most = trainer.args.max_completion_length
        for name in (
            "_tokenize_prompts",
            "_generate",
            "_get_per_token_logps_and_entropies",
            "_generate_and_score_completions",
        ):
            setattr(trainer, name, self._timed(name, getattr(trainer, name)))

    def _timed(self, name: str, method):
        def call(*args, **kwargs):
            start = now()
            result = method(*args, **kwargs)
            # the loss takes the log-probs too: the first call of a step is the reference's
            self.seconds.setdefault(name, now() - start)
            if name == "_generate":
                drawn = [len(tokens) for tokens in result[1]]
                assert not self.even or {*drawn} == {self.most}, drawn
                self.tokens = sum(drawn)
            return result

        return call


class Turns(transformers.TrainerCallback):
    """Makes the trainer wait for the runner before each step, and answers after it."""

    def __init__(self, channel: Channel, watch: Stopwatch):
        self.channel, self.watch = channel, watch
        self.memory = Memory()

    def on_step_begin(self, args, state, control, **kwargs):
        request = self.channel.receive()
        if request is None:  # the runner has hung up
            raise SystemExit
        torch.set_num_threads(request.get("threads", torch.get_num_threads()))
        self.watch.seconds.clear()
        self.memory.start()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        total = now() - self.start
        seconds = self.watch.seconds
        added = self.memory.added()
        if torch.cuda.is_available():
            added = torch.cuda.max_memory_allocated() - self.held
        phases = {
            "generate": seconds["_generate"] - seconds["_tokenize_prompts"],
            "reference": seconds["_get_per_token_logps_and_entropies"],
            "update": total - seconds["_generate_and_score_completions"],
        }
        host = total - sum(phases.values())
        step = {"host": host, **phases, "total": total, "memory": added}
        self.channel.send(step | {"tokens": self.watch.tokens})


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main():
    channel = Channel()
    w = Workload.from_json(channel.receive()["workload"])
    transformers.logging.set_verbosity_error()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as path:
        write_model(w, path)
        trainer = GRPOTrainer(
            model=path,
            reward_funcs=lambda completions, **_: rng.normal(size=len(completions)).tolist(),
            args=trainer_config(w, path),
            train_dataset=dataset(w),
            processing_class=processing_class(w),
        )
        trainer.add_callback(Turns(channel, Stopwatch(trainer)))
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        channel.send(
            {
                "parameters": sum(p.numel() for p in trainer.model.parameters()),
                "device": f"torch {device}",
                "threads": torch.get_num_threads(),
                "cores": len(os.sched_getaffinity(0)),
                "versions": versions("torch", "trl", "transformers", "accelerate"),
            }
        )
        trainer.train()


if __name__ == "__main__":
    main()
