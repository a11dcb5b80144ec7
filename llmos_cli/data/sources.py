"""Sources: from the `data` section of a config to named splits of rows under canonical names.

`builtin:NAME` is the function `load` of `builtin_NAME.py` beside this file, `snapshot:NAME` what `data snapshot` kept. Everything
else is read by `files.py`: a file, a folder, a saved `datasets` directory, a hub id, an fsspec URL. Several sources are put one
after the other. Where a source is gone, its last snapshot stands in.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llmos_cli.data import fingerprint, pii, snapshots, splits
from llmos_cli.data.masked import Masked, masked
from llmos_cli.data.masked import told as what_was_masked
from llmos_cli.data.rows import Rows, concatenated
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.options.data import DataOptions, Source

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Loaded:
    """`name` of the sources; `fingerprint` says which rows of them (JSON); `notes` are sentences that the user should see."""

    name: str
    splits: Mapping[str, Rows]
    fingerprint: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def train(self, column: str) -> Sequence[Any]:
        """A column of the training split; empty where there is none (a checkpoint judged on a file of its own)."""
        return self.splits["train"][column] if "train" in self.splits else []

    def key(self, split: str) -> Any:
        """What names the rows of a split: for the cache."""
        return self.fingerprint["splits"].get(split, {})

    def limited(self, options: DataOptions) -> dict[str, Rows]:
        """The splits with at most as many rows as the options ask for."""
        limits = {"train": options.max_samples}
        return {name: rows.evenly(limits.get(name, options.max_eval_samples)) for name, rows in self.splits.items()}


def load(options: DataOptions, columns: Sequence[str], *, cache: Path) -> Loaded:
    """The rows of `options.source` with `columns` (canonical names, the last one being the target of a classifier)."""
    sources = listed(options)
    told: tuple[str, ...] = ()
    seen: list[Masked] = []
    try:
        parts = {source.source: _one(source.source, options, columns, seen, cache=cache) for source in sources}
        rows = _together(sources, parts, options)
    except NotFound as gone:
        rows, told = _stand_in(gone, options, columns, cache=cache)
    described, notes = _described(rows, sources, masked=options.mask_pii)
    return Loaded(
        ", ".join(source.source for source in sources) or "data.splits",
        rows,
        described,
        (*told, *notes, *what_was_masked(seen)),
    )


def _together(
    sources: Sequence[Source], parts: Mapping[str, Mapping[str, Rows]], options: DataOptions
) -> dict[str, Rows]:
    named = {name: _of_split(name, sources, parts, options) for name in splits.NAMES}
    return {name: concatenated(rows) for name, rows in named.items() if rows}


def _stand_in(
    gone: NotFound, options: DataOptions, columns: Sequence[str], *, cache: Path
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The rows that were kept last of what the options ask for, and a sentence that says so."""
    kept = snapshots.of_cache(cache)
    found = snapshots.latest(kept, snapshots.asked(options, columns))
    if found is None:
        raise gone
    told = f"{gone.message}: the rows of snapshot {found.id[:12]}, kept on {found.time[:10]}, stand in"
    return snapshots.rows(kept, found, columns), (told,)


def builtins() -> list[str]:
    """Names of the data sets that need no network, by file name."""
    return sorted(path.stem.removeprefix("builtin_") for path in Path(__file__).parent.glob("builtin_*.py"))


def listed(options: DataOptions) -> list[Source]:
    """The sources that the options name; UsageError where they name none, or evaluate on another."""
    given = options.source
    if given is None and options.splits:
        given = ""
    if given is None:
        raise UsageError(
            "data.source is not set",
            hint=f"Give a file, a folder, a hub id or one of {', '.join(BUILTIN + name for name in builtins())}.",
        )
    several = given if isinstance(given, list) else [given]
    sources = [Source(source=source) if isinstance(source, str) else source for source in several]
    names = [source.source for source in sources]
    if not names:
        raise UsageError("data.source is an empty list", hint="Name at least one source.")
    if options.evaluate is not None and options.evaluate not in names:
        raise UsageError(
            f"data.evaluate is {options.evaluate}, which is not a source",
            hint=f"Sources: {', '.join(names)}; `--unset data.evaluate` evaluates on a part of each.",
        )
    return sources


def _one(
    source: str, options: DataOptions, columns: Sequence[str], seen: list[Masked], *, cache: Path
) -> dict[str, Rows]:
    """Masked, where it is to be, before it is cut: rows that differ in what was masked alone fall together."""
    read = raw(source, options, columns, cache=cache)
    read = masked(read, seen) if options.mask_pii else read
    if source.startswith((BUILTIN, snapshots.PREFIX)):
        return read
    return splits.completed(read, options, source=source or "data.splits", inputs=columns[:1])


def raw(source: str, options: DataOptions, columns: Sequence[str], *, cache: Path) -> dict[str, Rows]:
    """The source's own splits as they stand there."""
    if source.startswith(BUILTIN):
        return _builtin(source, columns, cache=cache)
    if source.startswith(snapshots.PREFIX):
        return _kept(source.removeprefix(snapshots.PREFIX), columns, cache=cache)
    from llmos_cli.data import files

    return files.read(source, options, columns, cache=cache)


def _builtin(source: str, columns: Sequence[str], *, cache: Path) -> dict[str, Rows]:
    name = source.removeprefix(BUILTIN)
    if name not in builtins():
        close = get_close_matches(name, builtins(), n=1)
        hint = f"Did you mean {BUILTIN}{close[0]}?" if close else f"There are: {', '.join(builtins())}."
        raise UsageError(f"there is no data set {source}", hint=hint)
    loaded: dict[str, Rows] = importlib.import_module(f"llmos_cli.data.builtin_{name}").load(cache)
    there = list(loaded["train"].columns)
    missing = [column for column in columns if column not in there]
    if missing:
        raise UsageError(
            f"{source} has no column {missing[0]} (it has {', '.join(there)})",
            hint="Choose a data set that fits data.task.",
        )
    return {split: Rows({column: rows[column] for column in columns}) for split, rows in loaded.items()}


def _kept(name: str, columns: Sequence[str], *, cache: Path) -> dict[str, Rows]:
    there = snapshots.of_cache(cache)
    return snapshots.rows(there, there.find(name), columns)


def _of_split(
    name: str, sources: Sequence[Source], parts: Mapping[str, Mapping[str, Rows]], options: DataOptions
) -> list[Rows]:
    """What each source gives to one split: repeated for training, only the chosen source for evaluation."""
    if name == "train":
        return [parts[s.source][name] for s in sources if name in parts[s.source] for _ in range(s.repeat)]
    return [
        parts[s.source][name]
        for s in sources
        if name in parts[s.source] and options.evaluate in (None, s.source) and len(parts[s.source][name])
    ]


def _described(
    kept: Mapping[str, Rows], sources: Sequence[Source], *, masked: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    rows = {name: fingerprint.digests(rows) for name, rows in kept.items()}
    described = {
        "sources": [source.model_dump() for source in sources],
        "splits": {name: fingerprint.of_split(digests) for name, digests in rows.items()},
    }
    return described | ({"masked": {"rules": pii.RULES}} if masked else {}), tuple(_leaks(rows))


def _leaks(rows: Mapping[str, Sequence[bytes]]) -> list[str]:
    trained = set(rows.get("train", ()))
    counts = {name: sum(digest in trained for digest in rows.get(name, ())) for name in ("validation", "test")}
    return [
        f"{count} of {len(rows[name])} {name} rows also stand in the training split"
        for name, count in counts.items()
        if count
    ]
