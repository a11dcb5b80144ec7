"""Making a new model from a config section: any transformers architecture, one of ours, or the user's own class.

    model: {arch: llama, hidden_size: 256, num_hidden_layers: 6}

Every key is checked against the architecture's configuration class; what the data decides (vocabulary, labels, image size) is
filled in from the task's facts; widths nobody chose get small defaults instead of the published model's billions.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from llmos_cli.errors import ConfigError, UsageError
from llmos_cli.models import blocks, module
from llmos_cli.models.load import AUTO, load
from llmos_cli.options.model import ModelOptions

SUFFIXES = {
    "causal-lm": "ForCausalLM",
    "image-classification": "ForImageClassification",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
}
ROPE_KEYS = {"rope_theta", "rope_scaling"}
"""Accepted beside a configuration's own fields where it has `rope_parameters`, which transformers makes of them."""
OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "xmod",
    "data2vec-text",
    "mpnet",
    "longformer",
}
"""Architectures whose positions start after the padding token's number."""
OWN_DEFAULTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "patch_size",
)
"""Keys that get another value here than in their configuration class where nobody sets them."""


def build(
    options: ModelOptions,
    task: str,
    facts: Mapping[str, Any],
    *,
    seed: int,
    root: Path | None = None,
    source: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A model with fresh weights in fp32, the same for the same seed.

    `facts`: configuration keys that the data decides, and `sequence_length`; `root`: the folder `module` is relative to;
    `source`: config.json of the checkpoint that the weights will come from, whose embeddings keep their rows.
    Raises ConfigError for an unknown architecture or key, or widths that do not fit together.
    """
    if options.module:
        return _build_own(options, facts, seed=seed, root=root or Path.cwd())
    arch = _known_arch(options.arch, task)
    config = configure(arch, options.widths(), task, facts, source or {})
    auto = AUTO[SUFFIXES[task]]
    if type(config) not in auto._model_mapping:
        raise ConfigError(f"{arch} has no model for {task}", hint=f"for {task}, try {' or '.join(_suggested(task))}")
    model = _construct(lambda: auto.from_config(config, dtype=torch.float32), f"model.arch {arch}", seed)
    # Said by from_config only when it saves; a later stage asks the model itself.
    model.config.architectures = [type(model).__name__]
    return model


def configure(
    arch: str, widths: Mapping[str, Any], task: str, facts: Mapping[str, Any], source: Mapping[str, Any]
) -> PreTrainedConfig:
    """The configuration of a new model: the user's keys, the data's facts, small defaults, in that order of precedence."""
    cls = CONFIG_MAPPING[arch]
    chosen = {cls.attribute_map.get(key, key): value for key, value in _checked(arch, cls, widths).items()}
    needed = _facts(arch, cls, chosen, facts)
    values = needed | _rows(arch, cls, needed, source) | chosen
    if not cls.__module__.startswith("llmos_cli."):
        values = _defaults(cls, values, task) | values
        values |= _foreign_tokens(cls, values)
    _fits_together(arch, values, cls.attribute_map)
    try:
        return cls(**values)
    except (StrictDataclassError, ValueError, TypeError) as problem:
        raise ConfigError(f"model.arch {arch}: {_sentence(problem)}", hint=_shown(widths)) from problem


@dataclass(frozen=True)
class Transferred:
    """Names of tensors: copied, fresh (the source has none of that name and shape), unused (the model has no place for them)."""

    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def transfer(model: PreTrainedModel, source: Path) -> Transferred:
    """Copy the weights of checkpoint `source` whose name and shape match into `model`, in place."""
    own, theirs = model.state_dict(), load(source).state_dict()
    matching = {name for name, value in own.items() if name in theirs and theirs[name].shape == value.shape}
    model.load_state_dict({name: theirs[name] for name in matching}, strict=False)
    return Transferred(
        copied=tuple(sorted(matching)),
        fresh=tuple(sorted(set(own) - matching)),
        unused=tuple(sorted(set(theirs) - matching)),
    )


def freeze_backbone(model: PreTrainedModel) -> None:
    """Train the head alone: nothing of the base model keeps a gradient.

    Raises UsageError where the head has no weights of its own, as when it is the embedding.
    """
    heads = blocks.head_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{head}.") for head in heads))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            "model.freeze=backbone leaves nothing to train: the head has no weights of its own",
            hint="where the head is the embedding, untie it with model.tie_word_embeddings=false; or do not freeze",
        )


def _known_arch(arch: str | None, task: str) -> str:
    if arch is None:
        raise ConfigError("no architecture is chosen", hint=f"set model.arch, for example {_suggested(task)[0]}")
    if arch not in CONFIG_MAPPING:
        raise ConfigError(f"model.arch {arch!r} is unknown", hint=_did_you_mean(arch, list(CONFIG_MAPPING)))
    return arch


def _suggested(task: str) -> tuple[str, ...]:
    return {
        "causal-lm": ("llama", "gpt2"),
        "image-classification": ("cnn", "mlp", "vit"),
        "text-classification": ("eurobert", "bag", "lstm"),
        "token-classification": ("eurobert", "lstm"),
    }[task]


def _checked(arch: str, cls: type[PreTrainedConfig], widths: Mapping[str, Any]) -> Mapping[str, Any]:
    known = _keys(cls)
    for key, value in widths.items():
        if key not in known:
            # A template's widths stay where `-s model.arch=` names another architecture; a section set whole has none.
            way_out = f"; -s 'model={{arch: {arch}}}' replaces the whole section" if arch in CONFIG_MAPPING else ""
            raise ConfigError(f"model.{key} is no key of {arch}", hint=_did_you_mean(key, sorted(known)) + way_out)
        if (
            key.startswith(("num_", "hidden_", "intermediate_", "n_", "vocab_"))
            and isinstance(value, int)
            and value < 1
        ):
            raise ConfigError(f"model.{key} is {value}", hint="it must be at least 1")
    return widths


def _keys(cls: type[PreTrainedConfig]) -> set[str]:
    own = {name for name in _parameters(cls) if not name.startswith("_")}
    return own | set(cls.attribute_map) | (ROPE_KEYS if "rope_parameters" in own else set())


def _parameters(cls: type[PreTrainedConfig]) -> set[str]:
    """What `__init__` names, and behind its **kwargs what those of its bases do; every field is set by transformers' own."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base is PreTrainedConfig:
            return names | {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if "__init__" in vars(base):
            _, *parameters = signature(vars(base)["__init__"]).parameters.values()
            names |= {p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
            if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
                break
    return names


def positions_before(arch: str, padding: int | None) -> int:
    """Positions of an architecture that no token ever has: those up to the padding token's number."""
    return (padding or 1) + 1 if arch in OFFSET_POSITIONS else 0


def _facts(
    arch: str, cls: type[PreTrainedConfig], chosen: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The facts that this configuration has a key for; what the user chose must be enough for the data."""
    known = _keys(cls) | {"num_labels"}
    values = {cls.attribute_map.get(key, key): value for key, value in facts.items() if key in known}
    if "id2label" in facts:
        values.pop("num_labels", None)
        values["label2id"] = {label: int(index) for index, label in facts["id2label"].items()}
    positions = cls.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    if "sequence_length" in facts and positions in known:
        values[positions] = facts["sequence_length"] + positions_before(arch, facts.get("pad_token_id"))
    for key, reason in (("vocab_size", "the tokenizer has"), (positions, "sequences need")):
        if key in chosen and key in values and chosen[key] < values[key]:
            raise ConfigError(
                f"model.{key} is {chosen[key]}, but {reason} {values[key]}", hint="raise it or leave it out"
            )
    return values


def _rows(
    arch: str, cls: type[PreTrainedConfig], needed: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Any]:
    """Embeddings with more rows than the data needs stay as long as they are: a shorter one could not take them over."""
    if source.get("model_type") != arch:
        return {}
    keys = (cls.attribute_map.get(key, key) for key in ("max_position_embeddings", "vocab_size"))
    return {key: source[key] for key in keys if key in needed and (source.get(key) or 0) > needed[key]}


def _defaults(cls: type[PreTrainedConfig], values: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Widths of a model that trains in minutes, derived from each other; only those the configuration has."""
    names = {
        key: cls.attribute_map.get(key, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    hidden = values.get(names["hidden_size"], 256)
    heads = values.get(names["num_attention_heads"], max(1, hidden // 64) if isinstance(hidden, int) else 4)
    known = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
    gated = known.get("hidden_act") in ("silu", "swish")
    defaults: dict[str, Any] = {
        names["hidden_size"]: hidden,
        names["num_hidden_layers"]: 4,
        names["num_attention_heads"]: heads,
    }
    if isinstance(hidden, int) and isinstance(heads, int):
        defaults |= {
            "intermediate_size": math.ceil(hidden * 8 / 3 / 64) * 64 if gated else 4 * hidden,
            "num_key_value_heads": heads,
            "head_dim": max(1, hidden // heads),
        }
        if task == "causal-lm":
            # An encoder's architecture sees only the past when it is told to be a decoder.
            defaults |= {"tie_word_embeddings": hidden <= 1024, "is_decoder": True}
    if isinstance(values.get("image_size"), int):
        defaults["patch_size"] = _patch_size(values["image_size"])
    return {key: value for key, value in defaults.items() if key in known and isinstance(known[key], int | bool | None)}


def _foreign_tokens(cls: type[PreTrainedConfig], values: Mapping[str, Any]) -> dict[str, None]:
    """Special tokens of the published model's tokenizer mean nothing to another: those nobody set are none, where the
    configuration can say so."""
    own = (field for field in fields(cls) if field.name.endswith("_token_id"))  # type: ignore[arg-type]
    return {field.name: None for field in own if field.name not in values and NoneType in get_args(field.type)}


def _patch_size(image_size: int) -> int:
    """The largest divisor of the image's side up to 16 that leaves at least 4 patches across."""
    return max((side for side in range(1, 17) if image_size % side == 0 and image_size // side >= 4), default=1)


def _fits_together(arch: str, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    hidden, heads = (values.get(names.get(key, key)) for key in ("hidden_size", "num_attention_heads"))
    groups, head_dim = values.get("num_key_value_heads"), values.get("head_dim")
    explicit = (
        isinstance(head_dim, int) and isinstance(hidden, int) and isinstance(heads, int) and head_dim != hidden // heads
    )
    if isinstance(hidden, int) and isinstance(heads, int) and hidden % heads and not explicit:
        raise ConfigError(f"hidden_size {hidden} does not divide into {heads} attention heads", hint=_divisors(hidden))
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ConfigError(f"{heads} attention heads do not divide into {groups} key-value heads", hint=_divisors(heads))
    rotary = isinstance(head_dim, int) and "rope_parameters" in _keys(CONFIG_MAPPING[arch])
    if rotary and head_dim is not None and head_dim % 2:
        raise ConfigError(
            f"heads of {head_dim} features cannot be rotated in pairs", hint="choose widths that make head_dim even"
        )


def _divisors(number: int) -> str:
    return f"{number} divides by {', '.join(str(d) for d in range(1, 65) if number % d == 0)}"


def _construct(make: Any, what: str, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return make()  # type: ignore[no-any-return]
        except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, ZeroDivisionError) as problem:
            raise ConfigError(
                f"{what} cannot be built: {_sentence(problem)}", hint="check the widths under `model`"
            ) from problem


def _build_own(options: ModelOptions, facts: Mapping[str, Any], *, seed: int, root: Path) -> PreTrainedModel:
    reference, name = module.split(str(options.module))
    cls = module.load_class(root / reference, name)
    if cls.config_class is None:
        raise ConfigError(f"{name} has no `config_class`", hint="give it a transformers.PreTrainedConfig class")
    known = _keys(cls.config_class)
    widths = _checked(name, cls.config_class, options.widths())
    config = cls.config_class(**{key: value for key, value in facts.items() if key in known} | dict(widths))
    module.record(config, root / reference, name)
    return _construct(lambda: cls(config), f"model.module {options.module}", seed)


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known[:12])}..."


def _sentence(problem: BaseException) -> str:
    """The last line of an exception's text: strict dataclasses put the reason there."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    reason = (lines or [type(problem).__name__])[-1].removeprefix("ValueError: ").removeprefix("TypeError: ")
    return reason.rstrip(".")


def _shown(widths: Mapping[str, Any]) -> str:
    return "you set " + ", ".join(f"{key}={value}" for key, value in widths.items()) if widths else ""
