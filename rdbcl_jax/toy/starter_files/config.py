"""A run on records of your own. `rdbcl config` explains every other setting.

rdbcl check --config=THIS_FILE
rdbcl train --config=THIS_FILE --workdir=DIR
"""

import pathlib

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config

HERE = pathlib.Path(__file__).parent


def get_config() -> ConfigDict:
    config = default_config()

    # What is learned, in this order. "mine" is yours; "alt" comes with the package, so that there
    # is something to forget. Replace it with a second task of your own.
    config.sequence = ("mine", "alt")
    config.tasks.mine = {
        # JSON Lines or Parquet; a row has a prompt, an image (a path beside the file, or bytes) and
        # an answer. The splits share no record.
        "train": str(HERE / "records" / "train.jsonl"),
        "validation": str(HERE / "records" / "validation.jsonl"),
        "test": str(HERE / "records" / "test.jsonl"),
        # how an answer is compared with the gold one: exact, number:0.05, choice, math, …
        "verifier": "exact",
    }

    # The model: a local Hugging Face directory, such as Qwen2.5-VL-3B-Instruct. Empty: a tiny model
    # made on the spot, which knows only the words of the package's digit tasks.
    config.model.path = ""
    config.model.dtype = "float32"  # bfloat16 for real models, on an accelerator
    # config.model.lora.rank = 16  # adapters alone learn: much less memory

    # Real models need to be told of the response format; {prompt} is the record's own.
    # config.data.template = (
    #     "{prompt}\nThink first, in <think> </think>, then give the final answer alone, in "
    #     "<answer> </answer>."
    # )
    config.data.prompt_lengths = (16,)  # tokens; `rdbcl check` says which records are longer
    config.data.patch_slots = (16,)  # patches of a picture; real pictures: (1024, 2048)
    config.data.train_count = 512  # of "alt", which is made on the spot
    config.data.validation_count = config.data.test_count = 64

    # A response's reward: a weighted sum. "format" and "accuracy" are built in.
    config.rewards.functions = {"short": "my_rewards:short"}
    config.rewards.weights = {"format": 0.2, "accuracy": 1.0, "short": 0.1}

    # 4 prompts × 4 rollouts a step; real runs: 32 × 8 and more
    config.rollout.prompts = 4
    config.rollout.samples = 4
    config.rollout.max_tokens = 16  # of a response; real models: 512 and more

    config.method = "rdbcl"  # or grpo, replay, …: `rdbcl config method`
    config.portability.beta_max = 0.2  # of RDB-CL's anchor; its mean is about half of that
    config.training.steps = 20  # of each task
    config.optimizer.learning_rate = 1e-4  # real models: 1e-6, with adapters 1e-5
    config.evaluation.batch_size = 64

    config.base.size = {"depth": 3}  # of the tiny model alone
    config.base.steps = 300
    return config
