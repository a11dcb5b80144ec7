"""Files: the user's own data, whatever its form, as splits of rows.

Tables, image folders, saved `datasets` and the hub are read by the `datasets` library (Arrow, mapped into memory, cached
in the workspace); text and CoNLL files by us. What goes wrong inside a library comes out as one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.data import conll
from llmos_cli.data.cache import workspace_of
from llmos_cli.data.columns import canonical
from llmos_cli.data.documents import Documents
from llmos_cli.data.places import (
    OTHER_FORMATS,
    SPLITS,
    Place,
    at_hand,
    filesystem,
    first_line,
    folder_at_hand,
    locate,
    parent,
)
from llmos_cli.data.rows import Rows
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.options.data import Columns, DataOptions

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def read(source: str, options: DataOptions, columns: Sequence[str], *, cache: Path) -> dict[str, Rows]:
    """The splits of a source that is not built in; `data.splits` renames its own or names a file for each."""
    root = workspace_of(cache)
    own: dict[str, Rows] = (
        _splits(locate(source, format=options.format, root=root), options, columns, cache) if source else {}
    )
    asked: dict[str, Rows] = {
        name: own[value] if value in own else _other_file(name, value, own, source, options, columns, cache)
        for name, value in options.splits.items()
    }
    used: set[str] = set(options.splits.values())
    standard = {SPLITS[name]: rows for name, rows in own.items() if name in SPLITS and name not in used}
    if not standard and not asked and len(own) == 1:
        standard = {"train": next(iter(own.values()))}
    splits = {**standard, **asked}
    for name, rows in splits.items():
        if len(rows) == 0:
            raise UsageError(f"the {name} split of {source or options.splits} has no rows", hint="Is the file empty?")
    return splits


def _other_file(
    name: str,
    value: str,
    own: Mapping[str, Rows],
    source: str,
    options: DataOptions,
    columns: Sequence[str],
    cache: Path,
) -> Rows:
    """A split named by a file: beside the source, or anywhere."""
    root = workspace_of(cache)
    beside = root / source / value
    try:
        place = locate(
            str(beside) if source and beside.exists() else value, format=options.format, root=root, hub=False
        )
    except NotFound as error:
        raise UsageError(
            f"data.splits.{name} is {value}, which is neither a file nor a split of {source or 'the source'}",
            hint=f"Its splits: {', '.join(own)}." if own else "Paths are relative to the workspace's folder.",
        ) from error
    rows = _splits(place, options, columns, cache)
    return rows["train"] if "train" in rows else next(iter(rows.values()))


def _splits(place: Place, options: DataOptions, columns: Sequence[str], cache: Path) -> dict[str, Rows]:
    """The source's own splits under the source's own names."""
    if place.format in ("csv", "json", "parquet", "conll", "text"):
        _refuse_empty(place)
    if place.format == "conll" or (place.format == "text" and columns[0] == "tokens"):
        tagged = "tags" in columns
        return {name: conll.read(files, options.columns, tagged=tagged) for name, files in place.by_split().items()}
    if place.format == "text":
        if tuple(columns) != ("text",):
            raise UsageError(
                f"{place.source} is plain text, which has no labels",
                hint="Use a csv, json or parquet file with a column for the text and one for the label.",
            )
        return {name: Rows({"text": Documents(files)}) for name, files in place.by_split().items()}
    if place.format == "imagefolder" and not place.folder:
        return {"train": _pictures(place, columns)}
    tables = _datasets(place, cache)
    folders = {name: _folders(place, name, workspace_of(cache)) for name in tables}
    return {name: _rows(table, columns, options, place.source, folders[name]) for name, table in tables.items()}


def _pictures(place: Place, columns: Sequence[str]) -> Rows:
    """A picture, or those that a pattern names: to be predicted, for nothing says what they show."""
    if tuple(columns) != ("image",):
        raise UsageError(
            f"{place.source} is pictures, and nothing says what they show",
            hint="Name a folder that has a folder of pictures for each class, or a table of their paths and labels.",
        )
    return canonical({"image": list(place.files)}, columns, Columns(), source=place.source, names={})


def _folders(place: Place, split: str, workspace: Path) -> list[str]:
    """Those that paths in a split's table are relative to: its files' own, then the workspace."""
    files = [] if place.format in OTHER_FORMATS else place.by_split().get(split, [])
    own = [place.folder] if place.folder and place.format == "datasets" else [parent(file) for file in files]
    return [*dict.fromkeys(own), str(workspace)]


def _refuse_empty(place: Place) -> None:
    for file in place.files:
        system, path = filesystem(file)
        if system.size(path) == 0:
            raise UsageError(f"{file} is empty", hint="Put rows in it, or name another file in data.source.")


def _rows(table: Dataset, columns: Sequence[str], options: DataOptions, source: str, folders: Sequence[str]) -> Rows:
    from datasets import Image

    names = {}
    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
        names[name] = getattr(getattr(feature, "feature", feature), "names", None)
    table_columns = {name: table[name] for name in table.column_names}
    return canonical(table_columns, columns, options.columns, source=source, names=names, folders=folders)


ICONV = "`iconv -f LATIN1 -t UTF-8 OLD > NEW`, say"


def _datasets(place: Place, cache: Path) -> DatasetDict | dict[str, Dataset]:
    """What the `datasets` library makes of a place; its errors as ours."""
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it also raises
    if place.format == "hub":
        return _hub(place.source)
    try:
        loaded = _saved(place, cache) if place.format == "datasets" else _built(place, cache)
    except (DatasetGenerationError, DatasetsError, OSError, ValueError, TypeError, KeyError) as error:
        reason = _reason(error)
        if "corresponds to no data" in reason:  # how the library says that a table has a header alone
            raise UsageError(f"{place.source} has no rows", hint="Is the file empty?") from error
        if "codec can't decode" in reason:
            raise UsageError(f"{place.source} is not UTF-8 text", hint=f"Save it as UTF-8: {ICONV}.") from error
        raise UsageError(
            f"{place.source} cannot be read as {place.format}: {reason}",
            hint="Check the file, or say what it is with data.format.",
        ) from error
    return loaded


def _built(place: Place, cache: Path) -> Any:
    from datasets import load_dataset

    extra: dict[str, Any] = {"sep": _delimiter(place.files[0])} if place.format == "csv" else {}
    if place.format == "imagefolder":
        return load_dataset("imagefolder", data_dir=folder_at_hand(place, cache), cache_dir=str(cache / "datasets"))
    files = {name: at_hand(files, cache) for name, files in place.by_split().items()}
    return load_dataset(place.format, data_files=files, cache_dir=str(cache / "datasets"), **extra)


def _saved(place: Place, cache: Path) -> Any:
    from datasets import Dataset, load_from_disk

    loaded = load_from_disk(folder_at_hand(place, cache))
    return {"train": loaded} if isinstance(loaded, Dataset) else loaded


def _hub(source: str) -> Any:
    """`id` or `id:configuration`."""
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    name, _, configuration = source.partition(":")
    try:
        return load_dataset(name, configuration or None)
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise NotFound(
            f"the data set {source} is neither a file here nor could it be fetched from the hub",
            hint=f"Check the spelling and the network ({_reason(error)}).",
        ) from error


def _delimiter(file: str) -> str:
    """The separator that the header has most of."""
    header = first_line(file)
    return max((",", "\t", ";", "|"), key=header.count)


def _reason(error: BaseException) -> str:
    """The innermost error's first line: libraries wrap it in general ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")
