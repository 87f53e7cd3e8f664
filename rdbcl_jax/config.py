"""Every setting of a run, with its default. `configs/*.py` start from here and change a few.

Any field is a flag: `--config.rollout.temperature=0.8`.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


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
                # batches drawn at most to replace groups whose rewards are all equal (DAPO)
                "resample": placeholder(int),
            },
            # None in `loss` and `kl`, and for rollout.resample: the method's own value, see
            # rdbcl_jax.methods.grpo
            "loss": {
                "clip_low": placeholder(float),
                "clip_high": placeholder(float),
                "dual_clip": placeholder(float),  # 0: off
                "ratio_level": placeholder(str),  # "token" or "sequence" (GSPO)
                "surrogate": placeholder(str),  # "ppo" or "cispo"
                # "sequence_mean", "token_mean" (DAPO) or "constant" (Dr. GRPO)
                "aggregation": placeholder(str),
                "advantage_scale": placeholder(str),  # "std", "none", "leave_one_out"
            },
            "kl": {
                "beta": placeholder(float),  # of all methods but `rdbcl`
                "kind": "k3",  # or "k2", "k3_bounded"
                # the frozen policy: "previous" (from before the task), "base" (from before the
                # first), "ema" (moving average of the policies at the tasks' boundaries)
                "reference": placeholder(str),
                "ema_decay": 0.5,  # share of the old average that is kept at a boundary
            },
            "portability": {  # how `rdbcl` scales the KL term
                "kind": "ratio",  # or "confidence", "static"
                "level": "reasoning",  # or "answer", "response"
                "mapping": "sigmoid",  # or "clip", "minmax", "rank", "constant"
                "beta_min": 0.0,
                "beta_max": 0.08,
                "temperature": 1.0,
                "verified": False,  # ours: anchor only samples that are right
                # what a claim must beat: every sample the batch's mean β ("matched"), or the β that
                # gives the same KL loss ("strength"); the βs dealt out at random ("shuffled"), high
                # RP relaxes ("inverted"), β by the group's accuracy instead of RP ("accuracy")
                "control": "none",
            },
            **method_options(),
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
                # after each task, this many responses to each of its records are drawn, and the
                # right ones kept in WORKDIR/rollouts/ for `rft_sft`
                "collect": 0,
                "checkpoint_every": 100,  # steps; also after every task. 0: only then
            },
            "evaluation": {
                "batch_size": 64,
                # tasks that are evaluated and never learned, beside those of `sequence`
                "tasks": (),
                # while a task is learned, validation accuracy on all tasks every so many steps;
                # 0: only before and after each task
                "every": 0,
            },
            "base": base(),
            "gate": gate(),
            "dry_run": False,  # two steps a task on a few records: does everything fit together?
        }
    )


def method_options() -> dict:
    """What single methods take, by their name; formulas are in rdbcl_jax.methods."""
    return {
        "demonstrations": {  # of `sft` and `dyme`: see rdbcl_jax.methods.demonstrations
            "target": "reasoning",  # or "answer", "rollouts"
            "no_reasoning": ".",  # what stands in place of a reasoning for "answer"
            "rollouts": "",  # "rollouts" and `rft_sft`: Parquet files, a name or a pattern
            "refiner": "",  # "package.module:function" that writes the reasoning; empty: none
        },
        "mssr": {
            "tracker": True,  # False: no baseline
            "survey": False,  # start the tracker with one rollout of each prompt, not with ½
            "adaptive": True,  # forget by the policy's movement; False: always rho_min
            "rho_min": 0.875,
            "rho_max": 0.96,
            "kl_target": 0.01,  # nats
            "window": 8,  # updates that the movement is averaged over
            "whitening": True,
            "shaping": "sampled",  # entropy shaping: of the sampled token, or "full", "none"
            "shaping_scale": 0.4,
            "shaping_share": 0.5,
        },
        "dyme": {"memorise": True, "explore": True},
        "rapo": {"weight": 0.5, "sharpness": 20.0},
        "replay": {
            "fraction": 0.25,  # of the prompts of a batch
            "per_task": 256,  # records that are kept of a task
            "anchor": "all",  # what a KL term is of: "all" samples, or those of "old" prompts
        },
        # sequences that the Fisher information is estimated on; share of the old one that is kept
        "ewc": {"strength": 100.0, "sequences": 256, "decay": 1.0},
        "lwf": {"weight": 1.0},
    }


def model() -> dict:
    return {
        # a Hugging Face checkpoint directory, or a run's policy after K of its tasks, WORKDIR@K;
        # empty: make the tiny base of `base`
        "path": "",
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
    Several processes always take the largest: give them no larger one than the data needs.
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
        "system_prompt": "",  # of records without a system message of their own; empty: none
        "threads": 2,
    }


def base() -> dict:
    """The tiny base model and its supervised fine-tuning; only where `model.path` is empty."""
    return {
        "suite": "digits",  # whose tasks it is taught: "digits", "forks", "puzzles"
        "seed": 0,
        "steps": 600,
        "batch_size": 64,
        "size": {},  # fields of rdbcl_jax.toy.tiny.TinySize that differ from its defaults
        "formatted": 1.0,  # share of demonstrations in the response format; others lack its tags
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
    """What `rdbcl gate` asks of a model: fractions in [0, 1]."""
    return {
        "records": 128,  # per task and check
        "zero_shot": (0.15, 0.6),  # accuracy of the base model
        "follow_decision": 0.75,  # at least: answers that follow a forced decision
        "follow_state": 0.75,  # at least: answers that follow an overwritten state
        "foreign_excess": 0.05,  # at most: accuracy beyond coincidence, with another's trace
        "answer_only": 0.4,  # at most: accuracy of a model taught to answer without states
        "answer_only_steps": 0,  # of that SFT; 0: leave this check out
    }
