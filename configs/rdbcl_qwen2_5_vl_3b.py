"""RDB-CL on Qwen2.5-VL-3B-Instruct over published task sequences:

    rdbcl train --config=rdbcl_qwen2_5_vl_3b          RFT-CPT's seven tasks (arXiv 2507.05386)
    rdbcl train --config=rdbcl_qwen2_5_vl_3b:ucit     UCIT's six (arXiv 2503.12941)
    rdbcl train --config=rdbcl_qwen2_5_vl_3b:mllm_cl  the five domains of MLLM-CL (arXiv 2506.05453)
    rdbcl train --config=rdbcl_qwen2_5_vl_3b:lora     RFT-CPT's, adapters alone on one chip of 32 GB

Fill in `model.path`, and make the tasks' files with `rdbcl prepare` (docs/data.md): the seven with
--out=/data, UCIT's with /data/ucit, MLLM-CL's with /data/mllm_cl. `--config.dry_run=True` tries
everything but the numbers without either. Tasks, order and metrics are the papers'. Group size,
learning rate, mean β and reward weights are those of RFT-CPT, a GRPO recipe for the 7B model; how
RDB-CL spreads β around that mean is a reconstruction.

Two of UCIT's six are captions, whose metric, CIDEr, is of a whole split: no reward tells one right
caption. They are evaluated after each task and not learned; for methods that learn from
demonstrations, `sft` among them, put all six into `sequence` and leave `evaluation.tasks` empty.
"""

from ml_collections import ConfigDict

from rdbcl_jax.config import default_config

TASKS = {  # in their order, with what compares answers
    "rft_cpt": {
        "scienceqa": "choice",
        "textvqa": "vqa",  # soft accuracy over ten annotators
        "vizwiz": "vqa",
        "gqa": "exact",
        "geometry3k": "math",
        "pathvqa": "exact",
        "superclevr": "exact",
    },
    "ucit": {
        "imagenet_r": "exact",
        "arxivqa": "choice",
        "vizwiz_captions": "caption",
        "iconqa": "exact",
        "clevr_math": "exact",
        "flickr30k": "caption",
    },
    "mllm_cl": dict.fromkeys(("rs", "med", "ad", "sci", "fin"), "exact"),
}
FOLDERS = {"rft_cpt": "/data", "ucit": "/data/ucit", "mllm_cl": "/data/mllm_cl"}


def get_config(form: str = "rft_cpt") -> ConfigDict:
    tasks = "rft_cpt" if form == "lora" else form
    config = default_config()
    config.model.path = "/models/Qwen2.5-VL-3B-Instruct"
    verifiers = TASKS[tasks]
    config.sequence = tuple(task for task in verifiers if verifiers[task] != "caption")
    config.evaluation.tasks = tuple(task for task in verifiers if verifiers[task] == "caption")
    for task, verifier in verifiers.items():
        splits = ("train", "validation", "test")
        config.tasks[task] = {s: f"{FOLDERS[tasks]}/{task}/{s}.jsonl" for s in splits}
        config.tasks[task].verifier = verifier

    config.data.image_root = "/data"  # of the pictures, which stay where they were downloaded
    config.data.template = (
        "{prompt}\nThink first, in <think> </think>, then give the final answer alone, in "
        "<answer> </answer>."
    )
    config.model.max_pixels = 1024 * 28 * 28  # 1,024 visual tokens of 28 × 28 pixels
    config.data.prompt_lengths = (384, 768, 1536)
    config.data.patch_slots = (1024, 2048, 4608)  # 4 patches a visual token, and window padding

    config.rollout.prompts = 64
    config.rollout.samples = 8
    config.rollout.max_tokens = 1024
    config.rewards.weights = {"accuracy": 0.9, "format": 0.1}
    config.optimizer.learning_rate = 1e-6
    config.kl.beta = 0.01
    config.kl.kind = "k3_bounded"  # drift on single tokens must not blow up the anchor
    config.portability.beta_max = 0.02  # mean 0.01
    config.training.steps = 500
    config.evaluation.batch_size = 64
    if form == "lora":  # on one v6e or H100; learning rate, batch and responses are ours
        config.model.lora.rank = 16
        config.optimizer.learning_rate = 1e-5
        config.rollout.prompts, config.rollout.max_tokens = 16, 512
        config.evaluation.batch_size = 16
    return config  # on a v5e-16 slice or more, or 8 GPUs of 80 GB; `rdbcl plan` says what of
