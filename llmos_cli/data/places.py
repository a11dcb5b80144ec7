"""Places: which files a source names, in which format, and which split each belongs to.

A source is a file, a pattern, a folder, or any of them behind an fsspec URL (`s3://`, `https://`, `memory://`...), which
may be a chain: `zip://rows.csv::s3://box/rows.zip`. Paths are those of its first link that has any; the rest says where it lies.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llmos_cli.core import urls
from llmos_cli.data.cache import entry
from llmos_cli.errors import LlmosError, NotFound, UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

FORMATS = {
    "csv": ("csv", "tsv"),
    "json": ("json", "jsonl", "ndjson"),
    "parquet": ("parquet",),
    "conll": ("conll", "conllu", "bio", "iob", "iob2"),
    "imagefolder": ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp"),
    "text": ("txt", "text", "md", "rst", "py", "html", "xml", "tex", "log"),
}
"""Format -> file endings; a compressed file (`.gz`, `.bz2`, `.xz`, `.zst`) is what it is before that ending."""
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
OTHER_FORMATS = ("datasets", "hub")
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What sources call their splits -> what we do."""


@dataclass(frozen=True)
class Place:
    """`files` are paths or URLs, sorted; `folder` where they were found, when the source is one; `format` of `FORMATS` or `OTHER_FORMATS`."""

    source: str
    format: str
    files: tuple[str, ...] = ()
    folder: str = ""

    def by_split(self) -> dict[str, list[str]]:
        """The files of each split: told by names like `train.csv`, `test-00001.parquet` or `dev/`, else all in `train`."""
        named: dict[str, list[str]] = {}
        for file in self.files:
            named.setdefault(self._split(file), []).append(file)
        named.pop("", None)
        return named if "train" in named else {"train": list(self.files)}

    def _split(self, file: str) -> str:
        below = PurePosixPath(_link(file)[1].removeprefix(_link(self.folder)[1]).lstrip("/"))
        word = below.parts[0] if len(below.parts) > 1 else below.name
        told = re.match(r"[A-Za-z]+(?=$|[-_.])", word) if self.folder else None
        return SPLITS.get(told.group().lower(), "") if told else ""


def locate(source: str, *, format: str | None, root: Path, hub: bool = True) -> Place:
    """Find what `source` names; relative paths are those of `root`, then of the current folder. `hub`: it may be an id there."""
    if format is not None and format not in (*FORMATS, *OTHER_FORMATS):
        raise UsageError(
            f"data.format {format} is unknown", hint=f"There are: {', '.join((*FORMATS, *OTHER_FORMATS))}."
        )
    if format == "hub":
        return Place(source, "hub")
    place = _absolute(source, root)
    if place is None:
        if "." in source and (close := get_close_matches(source, _names_in(root), n=1, cutoff=0.8)):
            raise NotFound(f"there is no file or folder {source}", hint=f"did you mean {close[0]}?")
        if hub and format is None and _could_be_on_the_hub(source):
            return Place(source, "hub")
        raise NotFound(f"there is no file or folder {source}", hint="Paths are relative to the workspace's folder.")
    return _found(source, place, format)


def _names_in(root: Path) -> list[str]:
    return [path.name for base in {root, Path.cwd()} for path in base.iterdir()]


def _absolute(source: str, root: Path) -> str | None:
    """A URL as it is but for the path that a chain may end in; a path that exists (or a pattern that matches) made absolute, else None."""
    if "://" in source:
        outer, mark, last = source.rpartition("::")
        local = _absolute(last, root) if mark and "://" not in last else None
        return f"{outer}::{local}" if local else source
    for base in (root, Path.cwd()):
        path = base / urls.path(source)
        if path.exists() or (any(sign in source for sign in "*?[") and glob.glob(str(path))):  # noqa: PTH207 (absolute)
            return str(path)
    return None


def _could_be_on_the_hub(source: str) -> bool:
    """`name` or `owner/name`, maybe `:configuration`, that is not plainly meant as a path."""
    plain = re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?(:[\w.-]+)?", source) is not None
    return plain and format_of(source) is None


def _found(source: str, place: str, format: str | None) -> Place:
    system, path = filesystem(place)
    if not any(sign in path for sign in "*?[") and system.isfile(path):
        return Place(source, format or format_of(path) or "text", (_named(system, path, place),))
    if system.isdir(path):
        return _folder(source, place, system, path, format)
    files = tuple(_named(system, file, place) for file in sorted(system.glob(path)) if system.isfile(file))
    if not files:
        raise NotFound(f"there is no file or folder {source}", hint="Check the URL or the pattern.")
    return Place(source, format or _commonest(source, files), files)


def _folder(source: str, place: str, system: AbstractFileSystem, path: str, format: str | None) -> Place:
    saved = any(system.isfile(f"{path.rstrip('/')}/{name}") for name in ("dataset_dict.json", "state.json"))
    if format == "datasets" or (format is None and saved):
        parts = tuple(_named(system, file, place) for file in sorted(system.find(path)))
        return Place(source, "datasets", parts, _named(system, path, place))
    files = [file for file in sorted(system.find(path)) if not _hidden(file, path)]
    if not files:
        raise UsageError(f"the folder {source} has no files", hint="Put the data there, or name another folder.")
    chosen = format or _commonest(source, files)
    kept = [file for file in files if format_of(file) == chosen] if chosen != "text" or format is None else files
    named = tuple(_named(system, file, place) for file in kept)
    return Place(source, chosen, named, _named(system, path, place))


def _commonest(source: str, files: Sequence[str]) -> str:
    counts = Counter(format for file in files if (format := format_of(file)) is not None)
    if not counts:
        raise UsageError(
            f"cannot tell the format of the files of {source}", hint=f"Set data.format to one of {', '.join(FORMATS)}."
        )
    # A few notes beside a table or pictures are not the data.
    return max(counts, key=lambda format: (format != "text", counts[format]))


def format_of(path: str) -> str | None:
    """The format that a file's ending tells."""
    pure = PurePosixPath(_link(path)[1].lower())
    ending = (PurePosixPath(pure.stem) if pure.suffix in COMPRESSED else pure).suffix.removeprefix(".")
    return next((format for format, endings in FORMATS.items() if ending in endings), None)


def filesystem(place: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of a path or URL, and the path within it."""
    import tarfile
    import zipfile

    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise UsageError(f"cannot read {place}: {_last_line(error)}", hint="Install the package it names.") from error
    except ValueError as error:
        for link in place.split("::"):
            urls.split(link)
        raise UsageError(f"cannot read {place}: {_last_line(error)}", hint="Check the URL.") from error
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {_link(place)[2].removeprefix('::')}", hint="Check the URL.") from error
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UsageError(f"cannot read {place}: {_last_line(error)}", hint="Check the file that it lies in.") from error
    return system, str(path)


def parent(file: str) -> str:
    """The folder of a file, as a path or URL."""
    before, path, after = _link(file)
    return f"{before}{path.rpartition('/')[0]}{after}"


def below(folder: str, path: str) -> str:
    """A path within a folder; one that is absolute, or a URL, is itself."""
    if "://" in path:
        return path
    if "://" not in folder:
        return str(Path(folder) / path)
    before, within, after = _link(folder)
    return f"{before}{within.rstrip('/')}/{path}{after}"


def _link(place: str) -> tuple[str, str, str]:
    """What stands before the path, the path, and what stands after it: `("zip://", "a.csv", "::/tmp/a.zip")`."""
    if "://" not in place:
        return "", place, ""
    protocol, _, rest = place.partition("://")
    path, mark, outer = rest.partition("::")
    return f"{protocol}://", path, f"{mark}{outer}"


def read_text(file: str) -> str:
    """A file's text, decompressed by its ending; bytes that are not UTF-8 are an error that says where."""
    return _decoded(file, -1).replace("\r\n", "\n")


def first_line(file: str) -> str:
    return _decoded(file, 1)


def _decoded(file: str, lines: int) -> str:
    import fsspec

    try:
        with fsspec.open(file, "rb", compression="infer") as stream:
            content: bytes = stream.read() if lines < 0 else stream.readline()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8 text (byte {error.start})", hint="Save it as UTF-8, or set data.format."
        ) from error
    except OSError as error:
        raise LlmosError(
            f"cannot read {file}: {_last_line(error)}", hint="Check that it is there and readable."
        ) from error


def at_hand(files: Sequence[str], cache: Path) -> list[str]:
    """Paths on this machine of files that may lie elsewhere: fetched once for each version of them that their store tells."""
    return [_fetched(file, cache) if "://" in file else file for file in files]


def folder_at_hand(place: Place, cache: Path) -> str:
    """The folder of a place on this machine, fetched whole when it lies elsewhere."""
    if "://" not in place.folder:
        return place.folder
    system, path = filesystem(place.folder)
    version = [[file, str(system.ukey(filesystem(file)[1]))] for file in place.files]
    return str(entry(cache, "fetched", version, lambda folder: system.get(f"{path}/", f"{folder}/", recursive=True)))


def _fetched(file: str, cache: Path) -> str:
    system, path = filesystem(file)
    name = PurePosixPath(path).name
    try:
        version = [file, str(system.ukey(path))]
        return str(entry(cache, "fetched", version, lambda folder: system.get_file(path, str(folder / name))) / name)
    except OSError as error:
        raise NotFound(f"cannot fetch {file}: {_last_line(error)}", hint="Check the URL and the network.") from error


def _named(system: AbstractFileSystem, path: str, place: str) -> str:
    """A path of a file system as others can open it: plain when local, a URL elsewhere."""
    if "://" not in place or place.startswith("file://"):
        return path
    before, _, after = _link(place)
    return f"{before.rpartition('::')[0]}{'::' if '::' in before else ''}{system.unstrip_protocol(path)}{after}"


def _hidden(file: str, folder: str) -> bool:
    return any(part.startswith((".", "__")) for part in PurePosixPath(file.removeprefix(folder).lstrip("/")).parts)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
