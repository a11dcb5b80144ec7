"""Models that others made, as we store them: Hugging Face directories, hub ids, GGUF files, pickled state dicts.

`upstream.find` brings their files into reach, `convert` writes a checkpoint directory: one shard per block, the tokenizer, the
card and the licence. No code from upstream runs: safetensors and GGUF hold none, pickles meet `unpickle`, and a model whose
architecture comes as Python files is refused.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from llmos_cli.errors import Corrupt, LlmosError, NotFound, Untrusted, UsageError
from llmos_cli.models import (
    blocks,
    bounded,
    dequantize,
    described,
    gguf_file,
    headers,
    sparse_files,
    try_tokenizer,
    unpickle,
)
from llmos_cli.models.build import SUFFIXES
from llmos_cli.models.load import AUTO, skeleton
from llmos_cli.models.save import save, tensors, write_streamed
from llmos_cli.models.upstream import PICKLES, Foreign

_MEMORY, _SECONDS = 2 << 30, 60
"""Of a process that reads what a stranger made: bytes and seconds of computing, many times those that its libraries begin with."""
_TOKENIZER = "put a tokenizer.json beside the weights"
_PER_SECOND = 20 << 20
"""Bytes of a pickle that are read in a second at least."""


@dataclass(frozen=True)
class Converted:
    """`fresh`: tensors the source lacked, now random (a new head); `notes`: what the user should know; `licence`: where the
    weights' file itself names one."""

    task: str
    architecture: str
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    licence: str = ""


def convert(foreign: Foreign, target: Path, *, task: str | None, dtype: torch.dtype | None, seed: int) -> Converted:
    """Write `foreign` as a checkpoint directory. `task`: needed where the architecture does not tell; `dtype`: of the weights,
    as upstream has them when None; `seed`: of a head that upstream lacks."""
    target.mkdir(parents=True, exist_ok=True)
    if (foreign.directory / sparse_files.FILE).is_file():
        return _convert_sparse(foreign, target, task=task, dtype=dtype, seed=seed)
    if foreign.gguf:
        return _convert_gguf(foreign, target, dtype)
    config = _config(foreign.directory)
    with described.believed(f"{foreign.directory / 'config.json'} describes a model that cannot be"):
        dequantize.check(config)
        own = _task(config)
    chosen = _chosen(task, own, config)
    for file in foreign.others():
        if file.suffix == ".json":
            described.table(file)
    _copy(foreign.others(), target)
    _forget_pointers(target)
    _tokenizer(foreign, target)
    weights = _safetensors(foreign, target)
    _must_fit(foreign.directory, weights)
    if dtype is None and chosen == own and _rewrite(weights, foreign.directory, target):
        return Converted(chosen, str(config["architectures"][0]))
    if config.get(dequantize.CONFIG_KEY):
        raise LlmosError("a quantized model is imported as it is", hint="leave out --dtype and --task")
    return _through_model(weights, foreign.directory, target, chosen, dtype, seed)


def _convert_sparse(
    foreign: Foreign, target: Path, *, task: str | None, dtype: torch.dtype | None, seed: int
) -> Converted:
    """Zeros put back first, beside the target: from there on it is a directory like any other."""
    with TemporaryDirectory(dir=target.parent) as folder:
        dense = Path(folder)
        sparse_files.restore(foreign.directory, dense)
        _copy(foreign.others(), dense)
        whole = replace(foreign, directory=dense, weights=tuple(headers.files(dense)))
        return convert(whole, target, task=task, dtype=dtype, seed=seed)


def _config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    if not file.is_file():
        raise NotFound(
            f"{directory.resolve()} holds no config.json", hint="it must stand beside the weights, as on the hub"
        )
    config = described.table(file)
    described.sizes(file, config)
    names = config.get("architectures")
    if not names:
        raise UsageError(f"{file} names no architecture", hint='add "architectures": ["LlamaForCausalLM"] or the like')
    if not (isinstance(names, list) and all(isinstance(name, str) and name.isidentifier() for name in names)):
        raise Corrupt(f"{file} names no architecture in a list", hint='it should be ["LlamaForCausalLM"] or the like')
    try:
        with described.believed(f"{file} does not load"):
            AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Corrupt as problem:
        if "auto_map" not in config:
            raise
        raise Untrusted(
            f"{directory.name} needs Python code of its own, which llmos does not run",
            hint="convert it with its own code to an architecture that transformers has, and import that",
        ) from problem
    return config


def _task(config: Mapping[str, Any]) -> str | None:
    """The task whose suffix the architecture's name ends with, or whose model of this type transformers calls otherwise
    (GPT2LMHeadModel)."""
    name = str(config["architectures"][0])
    by_suffix = (task for task, suffix in SUFFIXES.items() if name.endswith(suffix))
    return next(by_suffix, None) or next((task for task in SUFFIXES if name in _classes(task, config)), None)


def _classes(task: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What transformers calls this type's models of a task; those that answer on pictures or speech too are not looked for."""
    found = AUTO[SUFFIXES[task]]._model_mapping._model_mapping.get(config.get("model_type"), ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return tuple(name for name in names if not name.endswith("ForConditionalGeneration"))


def _chosen(task: str | None, own: str | None, config: Mapping[str, Any]) -> str:
    if found := task or own:
        return found
    hint = f"give it a new head with --task {' or '.join(SUFFIXES)}"
    raise UsageError(f"{config['architectures'][0]} is made for no task of llmos", hint=hint)


def _copy(files: Iterable[Path], target: Path) -> None:
    for file in files:
        described.bounded(file)
        shutil.copyfile(file, target / file.name)


def _forget_pointers(target: Path) -> None:
    """None to Python files that were left behind: transformers would ask whether to run them. And none to files of this machine: a
    tokenizer would be made of what they hold, a key of the user's perhaps, and pushed one day."""
    for file in target.glob("*config.json"):
        settings = described.table(file)
        tokenizer = file.name == "tokenizer_config.json"
        kept = {k: v for k, v in settings.items() if k != "auto_map" and not (tokenizer and _points(k, v))}
        if kept != settings:
            file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _points(key: str, value: Any) -> bool:
    """Whether a tokenizer's setting is a file to read, by its name or because there is one: the files of its own folder need no setting."""
    if key in ("vocab", "merges", "init_inputs") or key.endswith(("_file", "_spm")):
        return True
    return not key.endswith(("_token", "_tokens")) and any(map(os.path.exists, _texts(value)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _tokenizer(foreign: Foreign, target: Path) -> None:
    """tokenizer.json as it is, or made from whatever upstream has instead (merges, a sentencepiece model, GGUF's own table); tried."""
    names = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
    if not (target / "tokenizer.json").exists() and (foreign.gguf or any((target / name).exists() for name in names)):
        _make_tokenizer(foreign, target)
    if (target / "tokenizer.json").exists():
        _try_tokenizer(foreign, target / "tokenizer.json")


def _make_tokenizer(foreign: Foreign, target: Path) -> None:
    trouble = f"the tokenizer of {foreign.origin['source']} does not load"
    try:
        if not foreign.gguf:
            return _resave(target, target)
        with TemporaryDirectory(dir=target.parent) as alone:  # from settings that lie beside it
            (Path(alone) / foreign.gguf).symlink_to((foreign.directory / foreign.gguf).resolve())
            _resave(Path(alone), target, gguf_file=foreign.gguf)
    except ImportError as problem:
        raise LlmosError(f"{trouble}: {described.told(problem)}", hint=_TOKENIZER) from problem
    except Exception as problem:  # the tokenizers library raises nothing narrower
        raise Corrupt(f"{trouble}: {described.told(problem)}", hint=_TOKENIZER) from problem


def _try_tokenizer(foreign: Foreign, file: Path) -> None:
    """Before anything is encoded with it here: it may be made to take all memory, or all time."""
    allowed = _MEMORY + 20 * file.stat().st_size
    ended = bounded.run(Path(try_tokenizer.__file__), file, memory=allowed, seconds=_SECONDS)
    if ended.code:
        raise Corrupt(
            f"tokenizer.json of {foreign.origin['source']} makes no tokens of a text: {described.plain(ended.said)}",
            hint="copy or download it again",
        )


def _resave(source: Path, target: Path, **options: str) -> None:
    AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False, **options).save_pretrained(
        target
    )


def _safetensors(foreign: Foreign, target: Path) -> dict[str, headers.Entry]:
    """Where every tensor is; pickles are made safetensors first, in `target` (removed by `_rewrite` or `_through_model`)."""
    if any(file.suffix in PICKLES for file in foreign.weights):
        return headers.of_files([_unpickled(file, target) for file in foreign.weights])
    whole = foreign.weights == tuple(headers.files(foreign.directory))  # else one that was named alone
    return headers.of_directory(foreign.directory) if whole else headers.of_files(foreign.weights)


def _unpickled(file: Path, target: Path) -> Path:
    made, size = target / f"{file.name}.safetensors", file.stat().st_size
    ended = bounded.run(
        Path(unpickle.__file__),
        file,
        made,
        memory=_MEMORY + 3 * unpickle.MOST * size,  # as read, made contiguous, and on its way to the file
        seconds=_SECONDS + size // _PER_SECOND,
    )
    if ended.code == unpickle.REFUSED:
        raise Untrusted(
            f"{file.name} holds more than weights: {described.plain(ended.said)}", hint="ask its author for safetensors"
        )
    if ended.code:
        raise Corrupt(
            f"{file.name} is no state dict: {described.plain(ended.said)}",
            hint="only a pickled table of named tensors can be imported",
        )
    return made


def _must_fit(directory: Path, entries: Mapping[str, headers.Entry]) -> None:
    """Before anything of the sizes that the config tells is made."""
    file = directory / "config.json"
    with described.believed(f"{file} describes a model that cannot be"):
        bare = skeleton(directory)
    described.fits(file, bare, sum(math.prod(shape) for shape in headers.dense_shapes(entries).values()))


def _rewrite(entries: Mapping[str, headers.Entry], source: Path, target: Path) -> bool:
    """Copy the tensors as they are into one shard per block, one in memory at a time; False, and nothing written, where the
    names or sizes are not those that the architecture is stored with today."""
    model = skeleton(source)
    expected = {name: tuple(value.shape) for name, value in tensors(model).items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    dense = headers.dense_shapes(entries)
    if not expected.keys() <= dense.keys() <= expected.keys() | tied:
        return False
    if any(dense[name] != shape for name, shape in expected.items()):
        return False
    order = {name: index for index, name in enumerate(expected)}
    kept = [name for name in entries if headers.dense_name(name, entries) in order]
    groups = blocks.shards(sorted(kept, key=lambda name: order[headers.dense_name(name, entries)]))
    write_streamed(groups, lambda group: _read(group, entries), target)
    _forget({entry.file for entry in entries.values()}, target)
    return True


def _read(names: Iterable[str], entries: Mapping[str, headers.Entry]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(entries[name].file, []).append(name)
    for file, held in by_file.items():
        with described.believed(f"{file} cannot be read"), safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in held}
    return found


def _forget(files: Iterable[Path], target: Path) -> None:
    for file in files:
        if file.parent == target:
            file.unlink()


def _through_model(
    entries: Mapping[str, headers.Entry], source: Path, target: Path, task: str, dtype: torch.dtype | None, seed: int
) -> Converted:
    """Load what upstream has into the architecture of `task` and save that: renamed tensors, a new head, another dtype."""
    state = _read(entries, entries)
    stored = {value.dtype for value in state.values() if value.is_floating_point()}
    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    auto = AUTO[SUFFIXES[task]]
    if type(config) not in auto._model_mapping:
        raise UsageError(f"{config.model_type} has no model for {task}", hint=f"--task {' or '.join(SUFFIXES)}")
    with torch.random.fork_rng(), described.believed(f"{source / 'config.json'} describes a model that cannot be"):
        torch.manual_seed(seed)
        model, info = _filled(auto._model_mapping[type(config)], config, state)
    _must_have_fit(model, info, source)
    fresh = tuple(sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]))
    unused = sorted(info["unexpected_keys"])
    save(model, target, dtype=dtype or (stored.pop() if len(stored) == 1 else None))
    _forget({entry.file for entry in entries.values()}, target)
    notes = (
        (f"{len(unused)} tensors have no place in the model and were left out, {unused[0]} first",) if unused else ()
    )
    return Converted(task, type(model).__name__, fresh, notes)


def _must_have_fit(model: PreTrainedModel, info: Mapping[str, Any], source: Path) -> None:
    """A head may be new; where the model below it has other sizes than its tensors, or most of it none, it is another model."""
    body = f"{model.base_model_prefix}."
    if odd := sorted(each for each in info["mismatched_keys"] if each[0].startswith(body)):
        name, stored, wanted = odd[0]
        raise Corrupt(
            f"{name} has the sizes {list(stored)}, and {source / 'config.json'} says {list(wanted)}",
            hint="the weights are of another model than the config: copy or download the folder again",
        )
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    if lacking.issuperset(sizes):
        raise Corrupt(
            f"none of the tensors has a place in the {type(model).__name__} that {source / 'config.json'} describes",
            hint="are they weights of that model? Their names are those of another",
        )
    below = {name: size for name, size in sizes.items() if name.startswith(body)} or sizes
    if 2 * sum(size for name, size in below.items() if name in lacking) > sum(below.values()):
        raise Corrupt(
            f"the files lack {len(lacking)} tensors of the {type(model).__name__} that {source / 'config.json'} describes, "
            "most of its weights",
            hint="are files missing, or is it the config of another model? Copy or download the folder again",
        )


def _filled(classes: Any, config: PreTrainedConfig, state: dict[str, Tensor]) -> tuple[PreTrainedModel, dict[str, Any]]:
    cls = classes[0] if isinstance(classes, tuple | list) else classes
    loaded: tuple[PreTrainedModel, dict[str, Any]] = cls.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return loaded


def _convert_gguf(foreign: Foreign, target: Path, dtype: torch.dtype | None) -> Converted:
    """Dequantized by transformers' own reader; stored in bf16 unless told."""
    assert foreign.gguf is not None
    model = gguf_file.read(foreign.directory / foreign.gguf)
    save(model, target, dtype=dtype or torch.bfloat16)
    _tokenizer(foreign, target)
    named = gguf_file.licence(foreign.directory / foreign.gguf)
    return Converted("causal-lm", type(model).__name__, licence=named)
