"""Every setting of a run, with its default. `configs/*.py` start from here and change a few.

Any field is a flag: `--config.rollout.temperature=0.8`.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """The defaults, sized for a Qwen2.5-VL of a few billion parameters."""
    return ConfigDict(
        {
            "method": "rdbcl",  # a name in rdbcl_jax.methods.METHODS
            "seed": 0,
            "model": model(),
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # −1: all that the others leave
            "sequence": (),  # names of the tasks, in the order they are learned
            "tasks": {},  # per task: {"train", "validation", "test": source, "verifier": name}
            "data": data(),
            "rewards": {  # see rdbcl_jax.rewards.scoring.RewardConfig
                "weights": {"format": 0.2, "accuracy": 1.0},
                "task_weights": {},  # per task: weights that replace the above
                "functions": {},  # name: "package.module:function", in TRL's form
                "if_correct": (),  # components that pay only a correct answer
            },
            "rollout": {
                "prompts": 32,  # P, per update and over all devices
                "samples": 8,  # G, rollouts of each prompt
                "max_tokens": 1024,  # T
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": 0,
            },
            "loss": {
                "clip_low": 0.2,
                "clip_high": 0.2,
                "dual_clip": 0.0,  # 0: off
                "ratio_level": "token",  # or "sequence" (GSPO)
                "aggregation": "sequence_mean",  # or "token_mean" (DAPO), "constant" (Dr. GRPO)
                "advantage_scale": "std",  # or "none" (Dr. GRPO)
            },
            "kl": {"beta": 0.04, "kind": "k3"},  # beta: of `grpo`; kind: k2, k3 or k3_bounded
            "portability": {  # how `rdbcl` scales the KL term
                "kind": "ratio",  # or "confidence"
                "level": "reasoning",  # or "answer", "response"
                "mapping": "sigmoid",  # or "clip", "minmax", "rank", "constant"
                "beta_min": 0.0,
                "beta_max": 0.08,
                "temperature": 1.0,
            },
            "optimizer": {
                "name": "adamw",  # or "muon"
                "learning_rate": 1e-6,
                "adam_learning_rate": 0.0,  # muon: of what is no matrix; 0: the same
                "schedule": "constant",  # or "cosine", "linear", "tail"
                "warmup_steps": 10,
                "b1": 0.9,
                "b2": 0.98,
                "weight_decay": 0.0,
                "clip_norm": 1.0,  # global norm of the gradients; 0: off
            },
            "training": {
                "steps": 500,  # batches of rollouts per task
                "updates_per_batch": 1,
                "microbatches": 1,  # gradient accumulation: exact, whatever the number
                "chunk_size": 1024,  # tokens whose logits exist at one time
                "entropy": True,  # log the policy's entropy
                "checkpoint_every": 100,  # steps; also after every task. 0: only then
            },
            "evaluation": {
                "batch_size": 64,
            },
            "base": base(),
            "gate": gate(),
            "dry_run": False,  # two steps a task on a few records: does everything fit together?
        }
    )


def model() -> dict:
    return {
        "path": "",  # a Hugging Face checkpoint directory; empty: make the tiny base of `base`
        "dtype": "bfloat16",  # of activations and matrix products
        "param_dtype": "float32",  # of parameters, gradients and optimizer state
        "remat": "full",  # what the backward pass recomputes: "none", "full", or "dots" for less
        "attention": "auto",  # a backend of rdbcl_jax.models.attention: "xla", "splash", "cudnn"
        "freeze_vision": False,
        "lora": {  # only adapters are trained, and saved; rank 0: off
            "rank": 0,
            "alpha": 32.0,
            "targets": r"^language_model/layers/.*_proj$",  # which matrices, by name
        },
        "min_pixels": 0,  # images are resized into these limits; 0: the checkpoint's own
        "max_pixels": 0,
    }


def data() -> dict:
    """Sizes of the built-in tasks' splits, and the shapes that batches are padded to.

    Each list holds the allowed sizes; the smallest that fits is taken. Few sizes, few compilations.
    """
    return {
        "train_count": 4096,
        "validation_count": 256,
        "test_count": 512,
        "seed": 0,  # of the built-in tasks' records: the same data for every run seed
        "prompt_lengths": (512, 1024, 2048),
        "patch_slots": (1024, 2048, 4096),
        "images_per_prompt": (1,),
        "template": "{prompt}",
        "threads": 2,
    }


def base() -> dict:
    """The tiny base model and its supervised fine-tuning; only where `model.path` is empty."""
    return {
        "suite": "digits",  # whose tasks it is taught: "digits" or "forks"
        "seed": 0,
        "steps": 600,
        "batch_size": 64,
        "size": {},  # fields of rdbcl_jax.data.tiny.TinySize that differ from its defaults
        "follow": 0.8,  # probability that a demonstration takes the decision that its cue names
        "optimizer": {
            "name": "muon",
            "learning_rate": 8e-3,
            "adam_learning_rate": 3e-3,
            "schedule": "tail",
            "warmup_steps": 20,
            "b1": 0.9,
            "b2": 0.98,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        },
    }


def gate() -> dict:
    """What `rdbcl gate` asks of a model: fractions in [0, 1], see rdbcl_jax/gate.py."""
    return {
        "records": 128,  # per task and check
        "zero_shot": (0.15, 0.6),  # accuracy of the base model
        "follow_decision": 0.75,  # at least: answers that follow a forced decision
        "follow_state": 0.75,  # at least: answers that follow an overwritten state
        "foreign_excess": 0.05,  # at most: accuracy beyond coincidence, with another's trace
        "answer_only": 0.4,  # at most: accuracy of a model taught to answer without states
        "answer_only_steps": 0,  # of that SFT; 0: leave this check out
    }
