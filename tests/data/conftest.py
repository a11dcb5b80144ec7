"""A folder with one small table in every form that a user may have it in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos_cli.data.sources import Loaded, load
from llmos_cli.options.data import DataOptions

ROWS = [{"text": f"{word} number {i}", "label": word} for i in range(20) for word in ("ham", "spam")]
Loader = Callable[..., Loaded]


@pytest.fixture
def rows() -> list[dict[str, str]]:
    return ROWS


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    """`source("csv")` writes the rows in that form and returns where."""

    def write(form: str) -> Path:
        path = tmp_path / f"mail.{form}"
        WRITERS[form](path)
        return path

    return write


@pytest.fixture
def loaded(tmp_path: Path) -> Loader:
    """`loaded(path, ("text", "label"), columns={...})` loads a source with these options."""

    def run(source: object, wanted: tuple[str, ...] = ("text", "label"), **options: object) -> Loaded:
        given = None if source is None else str(source)
        return load(DataOptions.model_validate({"source": given, **options}), wanted, cache=tmp_path / "cache")

    return run


def _csv(path: Path) -> None:
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))


def _tsv(path: Path) -> None:
    path.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS))


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _json(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def _parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def _saved(path: Path) -> None:
    from datasets import ClassLabel, Dataset

    Dataset.from_list(ROWS).cast_column("label", ClassLabel(names=["spam", "ham"])).save_to_disk(str(path))


WRITERS = {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "json": _json, "parquet": _parquet, "saved": _saved}
