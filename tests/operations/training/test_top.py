"""A teacher's top logits on disk: what they hold, that they are computed once, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmos_cli.errors import Corrupt
from llmos_cli.events import Event, Progress
from llmos_cli.operations.training.top import Cached, cached, known, top_of
from llmos_cli.tasks.base import Batch

CLASSES = 7


class Table(nn.Module):
    """A model whose logits are a row of a table, by the token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(50, CLASSES, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


class Ragged:
    """Samples of six positions, of which one to five are scored; a sample's first position is always, its last one never."""

    def __len__(self) -> int:
        return 40

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        ids = torch.tensor([[(row + place) % 50 for place in range(6)] for row in rows])
        scored = torch.tensor([[place <= row % 5 for place in range(6)] for row in rows])
        return {"input_ids": ids, "labels": torch.where(scored, ids % CLASSES, -100)}

    def bytes(self, rows: Sequence[int]) -> int:
        return 0


def asked(cache: Path, key: Any = "one", *, k: int = 3, teacher: Any = Table, emit: Any = lambda event: None) -> Cached:
    return cached(cache, key, Ragged(), teacher, classes=CLASSES, k=k, temperature=2.0, autocast=nullcontext, emit=emit)


@pytest.mark.parametrize("k", [1, 3, CLASSES, CLASSES + 1])
def test_what_is_read_is_what_the_teacher_says_at_the_scored_positions(tmp_path: Path, k: int) -> None:
    rows = [7, 0, 39, 7, 12]
    batch = Ragged().batch(rows)
    scored = batch["labels"] != -100
    read = asked(tmp_path, k=k).of(rows, batch["labels"])
    with torch.no_grad():
        said = top_of(Table()(batch["input_ids"]).logits, k, 2.0)
    assert read.logp.shape == (5, 6, min(k, CLASSES))
    for one, other in zip(read, said, strict=True):
        assert torch.equal(one[scored], other[scored])


def test_samples_with_one_label_each_are_positions_too(tmp_path: Path) -> None:
    class Labelled(Ragged):
        def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
            return {"input_ids": torch.tensor(list(rows)), "labels": torch.zeros(len(rows), dtype=torch.int64)}

    read = cached(
        tmp_path, 0, Labelled(), Table, classes=CLASSES, k=2, temperature=1.0, autocast=nullcontext, emit=lambda e: None
    )
    with torch.no_grad():
        said = top_of(Table().table[[4, 1]], 2, 1.0)
    assert all(map(torch.equal, read.of([4, 1], torch.zeros(2, dtype=torch.int64)), said))


def test_the_second_time_no_teacher_is_loaded(tmp_path: Path) -> None:
    heard: list[Event] = []
    loaded: list[Table] = []

    def teacher() -> Table:
        loaded.append(Table())
        return loaded[-1]

    assert not known(tmp_path, "one")
    first = asked(tmp_path, teacher=teacher, emit=heard.append)
    steps = [(event.stage, event.step, event.total) for event in heard if isinstance(event, Progress)]
    assert steps == [("teacher", 16, 40), ("teacher", 32, 40), ("teacher", 40, 40)]
    assert known(tmp_path, "one") and not known(tmp_path, "other")
    again = asked(tmp_path, teacher=teacher, emit=heard.append)
    assert (len(loaded), len(heard)) == (1, 3)
    assert (first.logp_NK == again.logp_NK).all()


def test_a_teacher_that_is_cut_off_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path, emit=stop)
    assert not known(tmp_path, "one")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["logp.bin", "ids.bin", "columns.json"])
def test_a_damaged_entry_says_how_to_go_on(tmp_path: Path, name: str) -> None:
    asked(tmp_path)
    (file,) = tmp_path.rglob(name)
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(Corrupt, match="cannot be read") as damaged:
        asked(tmp_path)
    assert "remove that folder" in damaged.value.hint
