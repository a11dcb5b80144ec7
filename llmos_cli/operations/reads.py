"""What a step reads beside the checkpoint before it: the rows of its data and of calibration's own source, and a tokenizer that is not
made from them; as its manifest recorded them, and as they are today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmos_cli.core import config as configs
from llmos_cli.core import yaml12
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.view import short
from llmos_cli.errors import NotFound
from llmos_cli.events import Emit
from llmos_cli.operations import rerun, snapshots
from llmos_cli.operations.config import methods, root_of

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.operations.eval import Exam


class Place(NamedTuple):
    """Where something is read, as the user calls it; `split` is "" of a tokenizer."""

    use: Literal["data", "calibration", "tokenizer"]
    source: str
    split: str

    @property
    def told(self) -> str:
        return f"the {self.split} split of {self.source}" if self.split else f"the tokenizer {self.source}"

    @property
    def name(self) -> str:
        """In a table."""
        return f"{self.source} {self.split}".strip() + (" (calibration)" if self.use == "calibration" else "")

    @property
    def makes(self) -> bool:
        """Whether it decides what is made; the test split is looked at when that is done."""
        return self.split != "test"


class Gone(NotFound):
    """`source` can be read no more."""

    def __init__(self, source: str, error: NotFound) -> None:
        super().__init__(error.message, hint=error.hint)
        self.source = source


Reads = Mapping[Place, Mapping[str, Any]]
"""What is there: `rows` and `sha256` of a split, `sha256` of a tokenizer."""


def recorded(made: Manifest) -> Reads:
    return of(made, made.made.data)


def today(ws: Workspace, made: Manifest, emit: Emit) -> Reads:
    """Read again, but for what was kept: that is as it was. Gone where a source is."""
    before = recorded(made)
    snapshot = {"data": snapshots.kept_of(ws, made), "calibration": snapshots.calibration_kept_of(ws, made)}
    kept = {place: told for place, told in before.items() if snapshot.get(place.use)}
    if len(kept) == len(before):
        return kept
    with _or_gone(sources(made) or "the data"):
        exam, data = _data(ws, made, emit)
    if exam and (source := (data["calibration"] or {}).get("source")) and not snapshot["calibration"]:
        with _or_gone(source):
            data = {**data, "calibration": {**data["calibration"], "data": _calibration(ws, exam, source, made)}}
    now = of(made, data)
    return kept | {place: told for place, told in now.items() if not snapshot.get(place.use)}


def of(made: Manifest, data: Mapping[str, Any]) -> Reads:
    """What `data`, of a manifest of the same step, has recorded: under the names that `made` has for it."""
    called = sources(made) or "data"
    found: dict[Place, Mapping[str, Any]] = {
        Place("data", called, split): rows for split, rows in data.get("splits", {}).items()
    }
    if source := (made.made.data.get("calibration") or {}).get("source"):
        rows_of = data["calibration"]["data"]["splits"]
        found |= {Place("calibration", source, split): rows for split, rows in rows_of.items()}
    tokenizer = (made.made.config.get("data") or {}).get("tokenizer") or {}
    if tokenizer.get("type") == "from" and "tokenizer" in data:
        found[Place("tokenizer", str(tokenizer["path"]), "")] = {"sha256": data["tokenizer"]}
    return found


def sources(made: Manifest) -> str:
    """The names of the sources of its data."""
    found = made.made.data.get("sources", ())
    return ", ".join(str(each.get("source") if isinstance(each, Mapping) else each) for each in found)


@contextmanager
def _or_gone(source: str) -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise Gone(source, error) from error


def _data(ws: Workspace, made: Manifest, emit: Emit) -> tuple[Exam | None, Mapping[str, Any]]:
    """As a manifest made today would record it, with calibration's as it was; and what compressing would read, calibration too."""
    from llmos_cli.operations.eval import prepare
    from llmos_cli.operations.training.start import start
    from llmos_cli.options.data import DataOptions

    told = rerun.readable(ws, made)
    parent = ws.checkpoint(made.made.parents[0]) if made.made.parents else None
    if made.made.operation == "train":
        checked: Any = configs.check(
            yaml12.from_plain(told, f"the manifest of {short(made.id)}"), root_of("train"), methods=methods
        )
        teacher = ws.checkpoint(checked.train.teacher) if checked.train.teacher else None
        return None, start(ws, parent, checked, teacher).prepared.fingerprint
    assert parent is not None, "what compresses begins from something"
    exam = prepare(ws, parent, DataOptions(**told["data"]), seed=made.made.seed, emit=emit)
    return exam, {**exam.prepared.fingerprint, "calibration": made.made.data.get("calibration")}


def _calibration(ws: Workspace, exam: Exam, source: str, made: Manifest) -> Mapping[str, Any]:
    from llmos_cli.operations.compression.subject import elsewhere

    return elsewhere(exam, source, ws.cache, made.made.seed).fingerprint
