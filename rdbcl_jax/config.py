"""Every setting of a run: what it means, its range, its default.

`configs/*.py` start from `default_config()`, a ConfigDict, and change a few. Any field is a flag:
`--config.rollout.temperature=0.8`. Behind the command line stands `RunConfig`, which is frozen and
has checked every field. What a method takes is described beside it, in `rdbcl_jax/methods/`, and
the tiny base model's settings in `rdbcl_jax/toy/options.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rdbcl_jax.core.kl import KLSchedule
from rdbcl_jax.core.losses import Aggregation, RatioLevel, Surrogate
from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.sections import (
    SECTIONS,
    Count,
    Decay,
    Names,
    Natural,
    NonNegative,
    Positive,
    Probability,
    Refused,
    Regex,
    Rule,
    Section,
    Seed,
    Share,
    as_dict,
    hints,
    inner,
    known,
)

Reference = Literal["previous", "base", "ema"]

# modules on floors above that bring sections of their own: imported when a config is made
BRING_SECTIONS = ("rdbcl_jax.methods", "rdbcl_jax.toy.options")
# no setting of a run, though studies' configs have it, and runs saved before it left for `lab/`
NOT_OF_A_RUN = ("gate",)


DType = Literal["float32", "bfloat16", "float16"]
LearningDType = Literal["float32", "bfloat16"]
Axis = Annotated[int, Rule("−1 or an integer of at least 1", lambda n: n == -1 or n >= 1)]
Tokens = Annotated[int, Rule("an integer of at least 2", lambda n: n >= 2)]  # a word and the end
# a colder one would only multiply the gradients; greedy responses are not drawn at all
Temperature = Annotated[float, Rule("a number within [0.01, 100]", lambda x: 0.01 <= x <= 100)]
Template = Annotated[str, Rule("a text with {prompt} in it", lambda text: "{prompt}" in text)]
Weights = Annotated[Mapping[str, float], Rule("a weight of at least one reward", bool)]


@dataclasses.dataclass(frozen=True)
class LoRAConfig(Section):
    """Adapters: only they are trained and saved.

    Attributes:
      rank: of the adapters; 0: off.
      alpha: their weight is alpha / rank.
      targets: regular expression over the matrices' names; empty: all in the decoder's layers.
    """

    rank: Natural = 0
    alpha: Positive = 32.0
    targets: Regex = ""


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The model, and how it runs.

    Attributes:
      path: a Hugging Face checkpoint directory, or a run's policy after K of its tasks, WORKDIR@K;
        empty: make the tiny base of `base`.
      dtype: of activations and matrix products.
      param_dtype: of the parameters that learn and of their gradients; "bfloat16": updates are
        rounded at random, or small ones would be lost (see rdbcl_jax.training.rounding).
      frozen_dtype: of the matrices that do not learn, such as those below adapters; None: `dtype`,
        in which they are read.
      reference_dtype: of the matrices of the policy from before the task and of a reference; None:
        likewise. Averages, and the anchor of EWC, are held in `param_dtype`.
      remat: what the backward pass recomputes; "dots": less than "full".
      attention: "auto", or a backend of rdbcl_jax.models.attention: "xla", "splash", "cudnn".
      freeze_vision: the vision tower does not learn.
      min_pixels, max_pixels: images are resized to lie between them, or the grid of tiles where a
        family cuts some; 0: the checkpoint's own.
    """

    path: str = ""
    dtype: DType = "bfloat16"
    param_dtype: LearningDType = "float32"
    frozen_dtype: DType | None = None
    reference_dtype: DType | None = None
    remat: Literal["none", "full", "dots"] = "full"
    attention: Annotated[str, Names("rdbcl_jax.models.attention:BACKENDS")] = "auto"
    freeze_vision: bool = False
    lora: LoRAConfig = LoRAConfig()
    min_pixels: Natural = 0
    max_pixels: Natural = 0

    def __post_init__(self):
        super().__post_init__()
        if self.attention == "cudnn" and self.dtype == "float32":
            raise Refused(
                "attention",
                'is "cudnn", whose kernel takes 16 bits, with dtype="float32"; '
                'expected dtype="bfloat16", or attention="auto", which leaves the rest to XLA',
            )
        if 0 < self.max_pixels < self.min_pixels:
            raise Refused(
                "min_pixels", f"is {self.min_pixels}, above max_pixels, {self.max_pixels}"
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each axis of the mesh; −1: all that the other axes leave. With none of them
    set, `fsdp` is chosen: as few devices share the parameters as the run needs to fit, where
    devices say what they have room for (TPUs, GPUs).

    Attributes:
      data: copies of the model, each with rows of its own.
      fsdp: shards of parameters and optimizer state, gathered where they are needed; each has rows
        of its own, too.
      tensor: shards of every layer's heads and hidden features.
    """

    data: Axis = -1
    fsdp: Axis = 1
    tensor: Axis = 1


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Sizes of the built-in tasks' splits, and the shapes that batches are padded to.

    Each list holds the allowed sizes; the smallest that fits is taken. Few sizes, few compilations.
    Several processes always take the largest: give none larger than the data needs. Where a list is
    empty, what the records need is measured, and the sizes are chosen from 1, 2, 3, 4, 6, 8, …
    times 128 (of images: times 1). A run that goes on may add sizes.

    Attributes:
      train_count, validation_count, test_count: records of a built-in task.
      seed: of the built-in tasks' records, which are the same whatever the run's seed.
      prompt_lengths: tokens of a prompt.
      patch_slots: patches of an image, all that its windows or tiles hold.
      images_per_prompt: most images of a prompt.
      template: the prompt's text; `{prompt}` stands for the record's.
      system_prompt: for records without a system message of their own; empty: none.
      image_root: the directory in which all images of records lie, links followed; empty: that of
        the file that names them; "/": anywhere.
      check: of every record, before anything is made: "full", with its pictures decoded and its
        prompt encoded; "headers": nothing of its pictures but their headers is read.
      on_bad_record: "error": nothing is made while a record is wrong; "skip": such are left out,
        and listed in left_out.txt.
      threads: how many read and encode records.
    """

    train_count: Count = 4096
    validation_count: Count = 256
    test_count: Count = 512
    seed: Seed = 0
    prompt_lengths: tuple[Count, ...] = ()
    patch_slots: tuple[Count, ...] = ()
    images_per_prompt: tuple[Count, ...] = ()
    template: Template = "{prompt}"
    system_prompt: str = ""
    image_root: str = ""
    check: Literal["full", "headers"] = "full"
    on_bad_record: Literal["error", "skip"] = "error"
    threads: Natural = 2


@dataclasses.dataclass(frozen=True)
class RewardsConfig(Section):
    """What `rdbcl_jax.rewards.scoring.RewardConfig` is made from.

    Attributes:
      weights: component → weight, for all tasks that `task_weights` does not name.
      task_weights: task → weights that replace those.
      functions: name → "package.module:function" or "file.py:function", in TRL's form (see
        rdbcl_jax.rewards.calls); "overlong:LONGEST:BUFFER" and "repetition:N" (tokens) are there.
      if_correct: components that pay only a correct answer.
    """

    weights: Weights = dataclasses.field(default_factory=lambda: {"format": 0.2, "accuracy": 1.0})
    task_weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    functions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    if_correct: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RolloutConfig(Section):
    """How responses are sampled.

    Attributes:
      prompts: P, per update and over all devices.
      samples: G, rollouts of each prompt.
      max_tokens: T, the longest response, end token included.
      temperature: divides the logits, in sampling and in the log-probs learned from.
      top_p: keep the smallest set of tokens with this total probability; 1 keeps all.
      top_k: keep the k likeliest tokens; 0 keeps all.
      resample: most batches drawn to replace groups whose rewards are all equal (DAPO); None: the
        method's own.
    """

    prompts: Count = 32
    samples: Count = 8
    max_tokens: Tokens = 1024
    temperature: Temperature = 1.0
    top_p: Probability = 1.0
    top_k: Natural = 0
    resample: Natural | None = None


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
    """The policy loss; None: the method's own value, see rdbcl_jax.methods.grpo.

    Attributes:
      clip_low, clip_high: the ratio is clipped to [1 − clip_low, 1 + clip_high].
      dual_clip: cap on the ratio where the advantage is negative, above 1 + clip_high; 0: off.
      ratio_level: a ratio per token, or per sequence (GSPO).
      surrogate: PPO's, CISPO's or SAPO's soft gate.
      aggregation: mean over sequences, over tokens (DAPO), or sum over a constant (Dr. GRPO).
      advantage_scale: what rewards less the group's mean are divided by, or RLOO's baseline.
      mask_truncated: responses cut at `rollout.max_tokens` are not learned from; their rewards
        count in their group.
      entropy_bonus: the loss is lowered by so many times the policy's entropy.
      entropy_share: of a batch's tokens, those of the highest entropy, that learn from rewards
        (2506.01939); 1: all.
    """

    clip_low: NonNegative | None = None
    clip_high: NonNegative | None = None
    dual_clip: NonNegative | None = None
    ratio_level: RatioLevel | None = None
    surrogate: Surrogate | None = None
    aggregation: Aggregation | None = None
    advantage_scale: Literal["std", "none", "leave_one_out"] | None = None
    mask_truncated: bool = False
    entropy_bonus: NonNegative = 0.0
    entropy_share: Probability = 1.0


@dataclasses.dataclass(frozen=True)
class KLConfig(Section):
    """The KL anchor to a frozen policy; None: the method's own value, see rdbcl_jax.methods.grpo.

    Attributes:
      beta: its coefficient, for all methods but `rdbcl`.
      schedule: of the coefficient over a task's steps, see rdbcl_jax.core.kl.kl_schedule.
      floor: the least coefficient of a schedule, as a share of the greatest.
      portability: scale each sample's by Reasoning Portability, as `rdbcl` does (`portability.*`),
        with any other method that samples.
      kind: its estimator, see rdbcl_jax.core.kl.
      importance_weighted: multiply the estimate by the token's importance ratio, gradient included
        (2512.02556, TRL's default): with k3 the gradient is that of KL(policy‖reference). With a
        ratio per sequence, too, where TRL takes the sequence's.
      reference: the frozen policy: "previous", from before the task; "base", from before the first;
        "ema", the moving average of the policies at the tasks' boundaries.
      ema_decay: share of the old average that is kept at a boundary; of adapters see
        rdbcl_jax.models.averages.
    """

    beta: NonNegative | None = None
    schedule: KLSchedule | None = None
    floor: Share | None = None
    portability: bool = False
    kind: Literal["k2", "k3", "k3_bounded"] = "k3"
    importance_weighted: bool = False
    reference: Reference | None = None
    ema_decay: Share = 0.5


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """The optimizer; see rdbcl_jax.training.optimizer.

    Attributes:
      name: AdamW for fine-tuning; Muon for models trained from scratch.
      learning_rate: its peak, at most 1: Adam and Muon move a parameter by about as much.
      adam_learning_rate: with Muon, for parameters that are not matrices; 0: the same.
      schedule: after the warm-up, see rdbcl_jax.training.optimizer; "tail": constant, then linear
        decay over the last 40 %.
      warmup_steps: updates of a linear warm-up. Schedules count the updates of a task, of which
        `training.updates_per_batch` are made on each batch.
      b1, b2: decay of the moments.
      moments_dtype: in which they are held; "bfloat16": rounded at random.
      weight_decay: decoupled; of matrices and adapters, not of norms, biases and embeddings. With
        Muon of the matrices that are its share alone: adapters do not decay.
      clip_norm: global norm of the gradients; 0: off.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: Share = 1e-6
    adam_learning_rate: Share = 0.0
    schedule: Literal["constant", "cosine", "linear", "tail"] = "constant"
    warmup_steps: Natural = 10
    b1: Decay = 0.9
    b2: Decay = 0.98
    moments_dtype: LearningDType = "float32"
    weight_decay: NonNegative = 0.0
    clip_norm: NonNegative = 1.0


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Section):
    """The training of each task.

    Attributes:
      steps: batches of rollouts per task.
      updates_per_batch: of the policy, on each batch.
      prompts_per_device: most prompts that an update takes at once on each device, with all of
        their responses; gradients are accumulated over as many micro-batches as that takes, which
        is exact. 0: as many as have room, where devices say (TPUs, GPUs); elsewhere all.
      chunk_size: tokens whose logits exist at one time.
      entropy: log the policy's entropy.
      merge: share of the weights from before a task in the policy that the task leaves (weight
        merging), of adapters see rdbcl_jax.models.averages; None: the method's own, which is 0
        but for `pseudo_rehearsal`.
      collect: responses drawn to each record of a task after it; the right ones are kept in
        WORKDIR/rollouts/ for `rft_sft`.
      checkpoint_every: steps; also after every task. 0: only then.
      max_skipped: updates in a row whose loss or gradient is not finite, after which the run stops.
    """

    steps: Count = 500
    updates_per_batch: Count = 1
    prompts_per_device: Natural = 0
    chunk_size: Count = 1024
    entropy: bool = True
    merge: Share | None = None
    collect: Natural = 0
    checkpoint_every: Natural = 100
    max_skipped: Count = 5


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    """What is kept of a run's states, see rdbcl_jax.checkpoint.

    Attributes:
      keep: train states within a task; should the newest be damaged, the one before is used.
      verify: compare the hashes of files before they are read, and hash those that are saved; off:
        sizes alone, for models of which reading the files twice takes too long.
      background: a save holds the step while the arrays are copied to the host, and is written
        while the next steps go on; off: for hosts without the memory for that copy.
    """

    keep: Count = 2
    verify: bool = True
    background: bool = True


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Section):
    """Greedy accuracy on every task.

    Attributes:
      batch_size: prompts, over all devices.
      tasks: evaluated beside those of `sequence`, and never learned.
      every: steps between measurements of validation accuracy on all tasks while one is learned;
        0: only before and after each task.
    """

    batch_size: Count = 64
    tasks: tuple[str, ...] = ()
    every: Natural = 0


@dataclasses.dataclass(frozen=True)
class LogConfig(Section):
    """What a run tells of itself while it goes on, beside the files of its workdir.

    Attributes:
      to: where metrics, accuracies, examples and the config go: "tensorboard" (WORKDIR/tb),
        "wandb" (Weights & Biases), "trackio".
      project: of wandb and trackio.
      every: seconds between lines where there is no terminal, and at least between two versions of
        report.html while the run goes on.
    """

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "rdbcl"
    every: Positive = 30.0


S = TypeVar("S", bound=Section)


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
    """All settings of a run.

    Attributes:
      method: a name in rdbcl_jax.methods.METHODS.
      seed: of everything drawn but the built-in tasks' records.
      sequence: names of the tasks, in the order they are learned.
      tasks: per task: {"train", "validation", "test": source, "verifier": name, "format": a name in
        rdbcl_jax.data.layouts or a table of columns, "image_folder": where its images lie}.
      profile: steps that are traced, from the third of a call on, for TensorBoard's Profile page
        and for ui.perfetto.dev (WORKDIR/tb/plugins/profile); 0: none.
      dry_run: take two steps a task on a few records, to see that everything fits together.
      others: the sections that other modules bring, by name; `section` finds them by type.
    """

    method: Annotated[str, Names("rdbcl_jax.methods:METHODS")] = "rdbcl"
    seed: Seed = 0
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    sequence: tuple[str, ...] = ()
    tasks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    data: DataConfig = DataConfig()
    rewards: RewardsConfig = RewardsConfig()
    rollout: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    kl: KLConfig = KLConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: Natural = 0
    dry_run: bool = False
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    title: ClassVar[str] = "config"

    def __post_init__(self):
        super().__post_init__()
        kinds = _others()
        for name in self.others:
            if name not in kinds:
                raise Refused(name, f"is no field{did_you_mean(name, [*hints(RunConfig), *kinds])}")
        others = {name: _built(name, kind, self.others) for name, kind in kinds.items()}
        object.__setattr__(self, "others", others)

    @classmethod
    def of(cls, values: Any) -> Self:
        """The run's settings in a ConfigDict or a mapping; others at their defaults.

        Raises:
          Refused: a field that is unknown or cannot stand; it names the field, what was found and
            what was expected.
        """
        if isinstance(values, cls):
            return values
        values = {k: v for k, v in as_dict(values).items() if k not in NOT_OF_A_RUN}
        own = {name: values[name] for name in hints(cls) if name in values and name != "others"}
        others = {name: value for name, value in values.items() if name not in own}
        try:
            return cls(**own, others=others)
        except Refused as error:
            raise error.within(cls.title) from None

    @classmethod
    def of_saved(cls, values: Mapping[str, Any]) -> Self:
        """The settings that a results.json holds, without those not known here."""
        kinds = {**hints(cls), **_others()}
        return cls.of({k: known(kinds[k], value) for k, value in values.items() if k in kinds})

    def section(self, kind: type[S]) -> S:
        """The section of that type, which its own module has registered."""
        return cast(S, self.others[kind.title])

    def changed(self, fields: Mapping[str, Any]) -> Self:
        """The same with other values: `config.changed({"model.path": path})`."""
        values = self.to_dict()
        for name, value in fields.items():
            *path, last = name.split(".")
            part = values
            for step in path:
                part = part[step]
            part[last] = value
        return type(self).of(values)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return values | values.pop("others")


def default_config() -> ConfigDict:
    """The defaults, sized for a Qwen2.5-VL of a few billion parameters, for the command line."""
    others = {name: kind() for name, kind in (_others() | SECTIONS).items()}
    return ConfigDict(_fields(RunConfig()) | {name: _fields(part) for name, part in others.items()})


def _others() -> dict[str, type[Section]]:
    """The sections of a run that other modules bring."""
    for module in BRING_SECTIONS:
        importlib.import_module(module)
    return {name: kind for name, kind in SECTIONS.items() if name not in NOT_OF_A_RUN}


def _built(name: str, kind: type[S], values: Mapping[str, Any]) -> S:
    try:
        return kind.of(values.get(name, {}))
    except Refused as error:
        raise error.within(name) from None


def _fields(part: Section) -> dict[str, Any]:
    """The section's values as a ConfigDict holds them; a None keeps the type that its flag has."""
    found = {}
    for name, hint in hints(type(part)).items():
        value = getattr(part, name)
        if isinstance(value, Section):
            value = _fields(value)
        elif value is None:
            kind = inner(hint)[0]
            value = placeholder(str if get_origin(kind) is Literal else kind)
        if name != "others":
            found[name] = value
    return found
