"""Where a model that others made is, and its files: a Hugging Face directory, a file of weights, an id on the hub.

Nothing is read but names: a link that leads out of the folder, and what is no file, are refused before anything is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from llmos_cli.core import urls
from llmos_cli.errors import Corrupt, LlmosError, NotFound, Untrusted, UsageError
from llmos_cli.models import headers

PICKLES = (".bin", ".pt", ".pth")
KEPT = [
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer*.json", "tokenizer*.model", "*.bpe.model", "spiece.model", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
]
"""What is taken from upstream beside weights."""


@dataclass(frozen=True)
class Foreign:
    """Upstream files on this disk. `weights`: the files that hold them; `origin`: what the checkpoint remembers of the place."""

    directory: Path
    weights: tuple[Path, ...]
    origin: Mapping[str, str]

    @property
    def gguf(self) -> str | None:
        return next((file.name for file in self.weights if file.suffix == ".gguf"), None)

    def others(self) -> list[Path]:
        """Configuration, tokenizer, card, licence: no code, no weights, and nothing that merely lies in the same folder."""
        return [file for file in self.beside() if file.is_file()]

    def stamps(self) -> Mapping[Path, tuple[int, ...]]:
        """What changes of a file whenever its bytes do: compared with those of another moment, whether they did between."""
        told = {file: file.stat() for file in (*self.weights, *self.others()) if file.is_file()}
        return {file: (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for file, at in told.items()}

    def beside(self) -> list[Path]:
        """What bears the name of such a file, whatever it is."""
        if self.gguf:  # says all of that itself
            return []
        there = sorted(self.directory.iterdir())
        return [file for file in there if any(fnmatch(file.name, pattern) for pattern in KEPT)]


def find(source: str, *, file: str | None = None, revision: str | None = None) -> Foreign:
    """The upstream files of a directory, a weights file, or a hub id (downloaded into the hub's own cache).

    `file`: which weights file, where a place has several; `revision`: branch, tag or commit on the hub.
    """
    path = urls.path(source)
    if path.is_dir():
        _check(path, path.iterdir())
        return Foreign(path, _choose(path, file), {"kind": "directory", "source": path.name})
    if path.is_file():
        if path.suffix not in (".safetensors", ".gguf", *PICKLES):
            raise UsageError(
                f"{path} is not a model", hint="a directory, .safetensors, .gguf, .bin or .pt can be imported"
            )
        named = Foreign(path.parent, (path,), {"kind": path.suffix.removeprefix("."), "source": path.name})
        _check(path.parent, named.beside())
        return named
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise NotFound(f"there is no {source}", hint="give a directory, a weights file, or a hub id like org/name")
    return _download(source, file, revision)


def _check(directory: Path, entries: Iterable[Path]) -> None:
    """Untrusted where a link leads out of the folder: in an unpacked archive it may lead to a key of the user's, which would be
    imported, and pushed one day. The hub's cache has its files beside its snapshots, and links to those. Corrupt where one would wait
    for ever for what is no file."""
    inside = directory.resolve()
    blobs = inside.parent.parent / "blobs" if inside.parent.name == "snapshots" else inside
    for each in entries:
        if each.exists() and not (each.is_file() or each.is_dir()):
            raise Corrupt(f"{each} is a pipe, a socket or a device, and no file", hint="models have none: remove it")
        target = Path(os.path.realpath(each))
        if each.is_symlink() and each.is_file() and not (target.is_relative_to(inside) or target.is_relative_to(blobs)):
            raise Untrusted(
                f"{each.name} in {directory} is a link that leads out of it, to {target}",
                hint="copy what it points to in its place, if that is what you mean",
            )


def _choose(directory: Path, file: str | None) -> tuple[Path, ...]:
    """The weights of a directory: the named file, else safetensors, else the only GGUF file, else pickles."""
    if file is not None:
        if not (directory / file).is_file():
            there = (
                ", ".join(
                    sorted(
                        path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".gguf", *PICKLES)
                    )
                )
                or "none"
            )
            raise NotFound(f"{directory.resolve()} has no file {file}", hint=f"its files of weights: {there}")
        return (directory / file,)
    if any(directory.glob("*.safetensors")):
        return tuple(headers.files(directory))
    ggufs = sorted(directory.glob("*.gguf"))
    if len(ggufs) > 1:
        raise UsageError(f"{directory.name} has {len(ggufs)} GGUF files", hint=f"choose with --file {ggufs[0].name}")
    if found := ggufs or sorted(directory.glob("pytorch_model*.bin")) or sorted(directory.glob("*.pt")):
        return tuple(found)
    raise NotFound(
        f"{directory.resolve()} holds no weights", hint="safetensors, GGUF, .bin and .pt files can be imported"
    )


def _download(name: str, file: str | None, revision: str | None) -> Foreign:
    wanted = [file] if file else ["*.safetensors"]
    directory = _snapshot(name, revision, [*KEPT, "*.index.json", *wanted])
    if not file and not any(directory.glob("*.safetensors")):
        directory = _snapshot(name, revision, [*KEPT, "pytorch_model*.bin"])
    origin = {"kind": "hub", "source": name, "revision": directory.name}
    return Foreign(directory, _choose(directory, file), origin)


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as problem:
        raise NotFound(f"{name} is neither a file nor a hub id", hint="a hub id looks like org/name") from problem
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError) as problem:
        raise LlmosError(
            f"{name} is not on this machine and the hub cannot be reached",
            hint="download it where there is a network, and import the directory",
        ) from problem
    except HfHubHTTPError as problem:
        reason = str(problem).strip().splitlines()[0]
        raise NotFound(
            f"the hub does not give out {name}: {reason}", hint="check the id, or log in with `hf auth login`"
        ) from problem
