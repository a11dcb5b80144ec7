"""What each verb may be told: one class per section, one root per `configs/<verb>.yaml`.

A method's own options live beside the method and appear as `<verb>.<method>`: hence `extra="allow"` on the verbs
that have methods; `core/config.py` checks those keys against the catalog and the method's `Options` class.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr

from llmos_cli.core.section import Section
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions

Own = TypeVar("Own", bound=Section)


def _not_zero(inputs: int) -> int:
    if inputs == 0:
        raise ValueError("a group of 0 inputs means nothing")
    return inputs


GroupSize = Annotated[int, Field(ge=-1), AfterValidator(_not_zero)]


def _names_one(file: str) -> str:
    if not file.strip():
        raise ValueError("it names no file: leave it out, or say which (a variable of the shell that is not set?)")
    return file


Guard = Annotated[str, AfterValidator(_names_one)]
"""A file that something is guarded by: an empty name, of a variable that is not set, must not switch the guard off."""


class Methodical(Section):
    """A verb with methods: options of method NAME stand under the key NAME."""

    model_config = ConfigDict(extra="allow")
    has_methods: ClassVar[bool] = True

    _of_methods: dict[str, Section] = PrivateAttr(default_factory=dict)

    def of_method(self, name: str, options: type[Own]) -> Own:
        """What was set for one method, as its own options: each of them that is never read is reported like any other key."""
        own = options(**(self.__pydantic_extra__ or {}).get(name) or {})
        self._of_methods[name] = own
        return own

    def unread(self, prefix: str = "") -> list[str]:
        chosen = {f"{prefix}{name}": own for name, own in self._of_methods.items()}
        others = [key for key in super().unread(prefix) if key not in chosen]
        return others + [key for name, own in chosen.items() for key in own.unread(f"{name}.")]


class RoundedOptions(Section):
    """Training with rounded weights: the checkpoint is a quantized one, and its codes are what was trained."""

    bits: int | None = Field(None, ge=2, le=8)
    """Of each weight of linear layers; convolutions have 8. Weights are not rounded when absent."""
    group_size: GroupSize = 128
    """Inputs that share a scale; -1: one scale per output channel."""
    symmetric: bool = True
    """Whether codes lie evenly around zero; else each group has a zero point of its own, which transformers reads only when it is told
    to dequantize."""
    start: Literal["gptq", "nearest"] = "gptq"
    """The codes that training from a REV begins with, where REV is not quantized in this form already and has its own: as GPTQ chooses
    them on training samples, or the nearest."""


class TrainOptions(Methodical):
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; with `max_seconds` too, whichever comes first."""
    max_seconds: float | None = Field(None, gt=0)
    """Wall-clock budget of the loop, validation and compiling included; the schedule follows it."""
    max_epochs: float | None = Field(None, gt=0)
    save_every: int | None = Field(None, ge=1)
    """Steps between resume states; every validation when absent."""
    learning_rate: float = Field(2e-3, gt=0)
    batch_size: int = Field(16, ge=1)
    """Samples (sequences for language models) in a forward pass."""
    accumulation: int = Field(1, ge=1)
    """Forward passes in an optimizer step."""
    optimizer: str = "adamw"
    """A file of `methods/train/`: its own options are `train.<optimizer>.<option>`."""
    schedule: Literal["constant", "cosine", "linear", "step", "one-cycle"] = "cosine"
    warmup: float | None = Field(None, ge=0, lt=1)
    """Share of the run spent warming up: 0.02 when absent, 0.3 for one-cycle."""
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)
    eval_every: int | None = Field(None, ge=1)
    """Steps between validations; ten in a run when absent."""
    eval_samples: int = Field(256, ge=1)
    """Samples (sequences for language models) that a validation looks at, at most."""
    patience: int | None = Field(None, ge=1)
    """Validations without improvement before stopping."""
    keep: Literal["best", "last"] = "best"
    """Which weights the checkpoint holds: the best validation's or the last step's."""
    compile: Literal["auto", "on", "off"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic: bf16 autocast where the hardware computes it faster, by `auto`."""
    gradient_checkpointing: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    teacher: str | None = None
    """REV whose logits the model learns to match (KL), beside the labels."""
    teacher_weight: float = Field(0.5, ge=0, le=1)
    """Share of the teacher's KL in the loss; the rest is cross-entropy to the labels."""
    temperature: float = Field(1.0, gt=0)
    """Both sides' logits are divided by it before they are compared."""
    teacher_top: int | None = Field(None, ge=1)
    """Learn from this many of the teacher's top classes and the rest as one: computed once and kept in the workspace's cache.
    When absent, the teacher computes all of its logits in every step."""
    hidden_weight: float = Field(0.0, ge=0)
    """Of the distance to the teacher's hidden states, on top of the rest of the loss; 0 looks at the logits alone."""
    quantize: RoundedOptions = RoundedOptions()


class Compressing(Section):
    """What every verb that compresses may be told."""

    heal: int = Field(0, ge=0)
    """Steps of distillation from the parent (of `compress`, after each stage): pruned weights stay at zero; over the frozen codes of
    quantized layers scales, norms and biases learn."""
    calibration_samples: int = Field(64, ge=1)
    """Training samples whose activations the method looks at."""
    calibration: str | None = None
    """Where those samples come from, as `data.source` names it; the training data when absent. What evaluation will look at is
    left out."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of calibration's arithmetic: by `auto` bf16 where the model is stored in it and the hardware computes it faster. Sums are in
    fp32, and so is all of a method that works on whole blocks."""
    ignore: list[str] = []
    """Glob patterns of modules to leave alone, beside embeddings and output heads."""
    max_kl: float | None = Field(None, ge=0)
    """Commit nothing when the KL to the parent (nats per position) is above this."""
    max_drop: float | None = Field(None, ge=0)
    """Commit nothing when the task's metric is worse than the parent's by more than this, in its own unit."""
    memory_budget: float | None = Field(None, gt=0, le=1e9)
    """Gigabytes that compressing and proving may take beside one block: activations past a quarter of it go to disk, models that
    do not fit are proven block by block. Half of what is free when absent."""
    latency: bool = True
    """Whether the proof measures latency, throughput and the memory of answering, parent beside result."""


class PruneOptions(Compressing, Methodical):
    method: str = "wanda"
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the weights of each pruned layer set to zero; of a structured method, share of the model's parameters that go."""
    pattern: str = Field("unstructured", pattern=r"^(unstructured|[0-9]+:[0-9]+)$")
    """`unstructured`, or `n:m` (at most n non-zero weights in each m consecutive inputs), which says its own sparsity."""
    allocation: Literal["uniform", "owl"] = "uniform"
    """How zeros are shared out among blocks: alike, or fewer where more weights are outliers by size and input (OWL)."""


class QuantizeOptions(Compressing, Methodical):
    method: str = "gptq"
    bits: int = Field(4, ge=2, le=8)
    """Of each weight; convolutions and LSTMs are always kept with 8."""
    group_size: GroupSize = 128
    """Inputs that share a scale; -1: one scale per output channel."""
    symmetric: bool = True
    """Whether codes lie evenly around zero; else each group has a zero point of its own, which transformers reads only when it is told
    to dequantize."""
    rotation: Literal["off", "hadamard", "heads"] = "off"
    """Turn the model first, so that outliers of single channels are spread over all of them: `hadamard` its residual stream and its
    values, `heads` the values alone. It answers the same, and is as quick; an output layer that was tied to the embeddings is stored by itself."""
    layers: dict[str, Annotated[int, Field(ge=2, le=8)]] = {}
    """Glob pattern of modules -> bits of those, the last that matches; `bits` for the others. Readers that fuse query, key and
    value, or gate and up, want those in one form."""
    embeddings: bool = False
    """Whether token embeddings and the head are rounded to 8 bits too, in the same groups. transformers reads that, vLLM does not."""


class CompressOptions(Compressing):
    """Exactly one target; the rest bounds what is tried to reach it."""

    target_size: str | None = Field(None, pattern=r"^[0-9]+(\.[0-9]+)? ?(B|kB|MB|GB)$")
    """Of all weights on disk, such as 40MB (10^6 bytes)."""
    target_ratio: float | None = Field(None, gt=0, lt=1)
    """Of all weights on disk, as a share of the parent's."""
    target_latency: float | None = Field(None, gt=0, lt=1)
    """Of the median time of one answer as it would be served, as a share of the parent's: a new token of a language model, a sample of a
    classifier."""
    target_kl: float | None = Field(None, gt=0)
    """The smallest result whose KL to the parent (nats per position) is at most this."""
    bits: list[Annotated[int, Field(ge=2, le=8)]] = Field([2, 3, 4, 5, 6, 8], min_length=1)
    """What the layers' weights may be kept in."""
    group_size: GroupSize = 128
    """Inputs that share a scale; -1: one scale per output channel."""
    cuts: list[Annotated[float, Field(gt=0, lt=1)]] = [0.1, 0.2, 0.3, 0.4, 0.5]
    """Shares of the parameters that may be cut out of the model before its weights are quantized."""
    embeddings: bool = False
    """Whether token embeddings and the head are rounded to 8 bits too. transformers reads that, vLLM does not."""
    probe_samples: int = Field(16, ge=1)
    """Validation samples on which candidates are compared; the proof is taken on others."""


class HealOptions(Section):
    """Distillation after compressing: optimizer steps of `--heal` run with these."""

    learning_rate: float = Field(4e-4, gt=0)
    """Of weights in their own size; of quantized layers' scales, the share of a scale that a step may move it by."""
    batch_size: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0)
    hidden_weight: float = Field(0.0, ge=0)
    """Of the distance to the parent's hidden states, on top of the logits'; 0 looks at the logits alone."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic: bf16 autocast where the hardware computes it faster, by `auto`."""
    codes: bool = False
    """Whether a quantized layer's codes learn too, each weight moving by the same share of its scale; else scales, norms and
    biases alone."""


class TuneOptions(Methodical):
    space: dict[str, Any] = {}
    """Config key -> `{low, high, log, step}` or `{choices: [...]}` (or a bare list of choices)."""
    trials: int = Field(20, ge=1)
    sampler: str = "tpe"
    pruner: Literal["none", "median", "hyperband"] | None = None
    """Stops trials that do worse than others did at the same share of their budget; median when absent, none with several
    objectives, which it cannot compare."""
    objectives: dict[str, Literal["minimize", "maximize"]] = {}
    """Metric -> direction; the task's own metric when empty. Several give a Pareto front."""
    jobs: int = Field(1, ge=1)
    study: str | None = None
    """Name to resume by; made from the config's hash when absent."""
    storage: str | None = None
    """Optuna storage URL; a SQLite file of the workspace when absent."""
    max_seconds: float | None = Field(None, gt=0)
    """Budget of each trial's training."""
    max_steps: int | None = Field(None, ge=1)
    startup_trials: int | None = Field(None, ge=1)


class EvalOptions(Methodical):
    split: Literal["train", "validation", "test"] = "test"
    batch_size: int = Field(16, ge=1)
    require: list[str] = []
    folds: int | None = Field(None, ge=2)
    """k-fold cross-validation: trains and evaluates k times with the checkpoint's own config."""
    kv_cache: Literal["keep", "int8"] = "keep"
    """Judge a language model as a deployment with `deploy.kv_cache` answers, by its KL to itself without (`kl_cache`) too."""
    latency: bool = True
    """Measure latency, throughput and peak memory too."""


class DeployOptions(Section):
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    """0: any free port."""
    slots: int = Field(16, ge=1)
    """Requests decoded at once."""
    queue: int = Field(64, ge=0)
    """Requests that may wait; one more is answered 429."""
    max_request_bytes: int = Field(1_000_000, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    """Upper bound on a request's max_tokens."""
    context: int | None = Field(None, ge=8)
    """Positions in the KV cache of each slot; the model's own when absent."""
    warm: Literal["off", "background", "full"] = "background"
    kernels: Literal["auto", "off"] = "auto"
    """Multiply quantized weights as codes where that is measured to be faster; `off` dequantizes them at the start."""
    head: Literal["keep", "w8a8", "w8", "w4"] = "keep"
    """How the output layer of a language model is held: as it is stored, or rounded when it is loaded."""
    kv_cache: Literal["keep", "int8"] = "keep"
    """How keys and values are kept: as they are computed, or as int8 with a scale for each head of each token, in half the memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """In which a language model's weights are held and computed with: what the hardware does faster, by `auto`."""
    api_key_file: Guard | None = None
    require_signature: Guard | None = None
    """A public key or a certificate: only what it vouches for is served."""
    drain_seconds: float = Field(30.0, ge=0)


class TrainConfig(Section):
    seed: int = Field(0, ge=0, lt=2**53)
    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    train: TrainOptions = TrainOptions()


class PruneConfig(Section):
    seed: int = Field(0, ge=0, lt=2**53)
    data: DataOptions = DataOptions()
    prune: PruneOptions = PruneOptions()
    heal: HealOptions = HealOptions()


class QuantizeConfig(Section):
    seed: int = Field(0, ge=0, lt=2**53)
    data: DataOptions = DataOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    heal: HealOptions = HealOptions()


class CompressConfig(Section):
    seed: int = Field(0, ge=0, lt=2**53)
    data: DataOptions = DataOptions()
    compress: CompressOptions = CompressOptions()
    heal: HealOptions = HealOptions()


class TuneConfig(Section):
    """A trial is a training run: `configs/train.yaml` with the trial's values; this file holds the search."""

    seed: int = Field(0, ge=0, lt=2**53)
    tune: TuneOptions = TuneOptions()


class EvalConfig(Section):
    seed: int = Field(0, ge=0, lt=2**53)
    data: DataOptions = DataOptions()
    eval: EvalOptions = EvalOptions()


class DeployConfig(Section):
    deploy: DeployOptions = DeployOptions()


ROOTS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "prune": PruneConfig,
    "quantize": QuantizeConfig,
    "compress": CompressConfig,
    "tune": TuneConfig,
    "eval": EvalConfig,
    "deploy": DeployConfig,
}
