"""What all cells share: a workspace around the model, the tokens of each seed's calibration, and the held-out tokens.

llmos draws the calibration samples, as `llmos quantize` would with that seed, and they are written down for the peers; the held-out
ones come from the test split, which no calibration and no healing sees.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from llmos_cli.core.workspace import Workspace
from llmos_cli.events import ignore
from llmos_cli.models import headers
from llmos_cli.operations import import_, init
from llmos_cli.operations.compression.subject import Subject, calibration, subject
from llmos_cli.operations.config import resolve

HELD_OUT_SEED = 0


@dataclass(frozen=True)
class Drawn:
    """Calibration of one seed: the file of its tokens and the digest that llmos records of them."""

    tokens: Path
    sha256: str


@dataclass(frozen=True)
class Material:
    """`parent`: the model's plain directory, inside a workspace; `data`: its data section as `-s` settings."""

    folder: Path
    parent: Path
    parameters: int
    data: tuple[str, ...]
    calibration: dict[int, Drawn]
    held_out: Path


def material(
    model: Path, cache: Path, *, sources: str, length: int, samples: int, held_out: int, seeds: int
) -> Material:
    data = ("data.task=causal-lm", f"data.source=[{sources}]", f"data.sequence_length={length}")
    folder = cache / digest(model)
    parent = imported(model, folder)
    entries = headers.of_directory(parent)
    counted = sum(int(np.prod(entry.shape)) for entry in entries.values())
    found = Material(folder, parent, counted, data, {}, folder / f"held-out-{_key(*data, held_out)}.npy")
    for seed in range(seeds):
        tokens = folder / f"calibration-{_key(*data, samples, seed)}.npy"
        if not tokens.exists() or not found.held_out.exists():
            _draw(found, tokens, samples, held_out, seed)
        found.calibration[seed] = Drawn(tokens, tokens.with_suffix(".sha256").read_text())
    return found


def digest(directory: Path) -> str:
    """Of a model directory: the names and contents of its files but a manifest, which tells the time."""
    whole = hashlib.sha256()
    for file in sorted(path for path in directory.iterdir() if path.is_file() and path.name != "manifest.json"):
        with file.open("rb") as opened:
            whole.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def imported(model: Path, folder: Path) -> Path:
    """The model's checkpoint in a workspace of its own, made once and whole."""
    root, note = folder / "workspace", folder / "base"
    if not note.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        init.init(root, template="causal-lm")
        made = import_.import_(Workspace.find(root), str(model), import_.ImportOptions(), emit=ignore)
        note.write_text(made.checkpoint)
    return Workspace.find(root).checkpoint(note.read_text()).path


def _draw(found: Material, tokens: Path, samples: int, held_out: int, seed: int) -> None:
    ws = Workspace.find(found.parent)
    resolved = resolve(ws, "quantize", sets=[*found.data, f"seed={seed}"])
    parent = subject(ws, ws.checkpoint(found.parent.name), resolved, [], emit=ignore)
    drawn = calibration(parent, samples, {"hessian"}, seed=seed)
    np.save(tokens, torch.cat([batch["input_ids"] for batch in drawn.batches]).cpu().numpy())
    tokens.with_suffix(".sha256").write_text(drawn.record["sha256"])
    np.save(found.held_out, _held_out(parent, held_out))


def _held_out(parent: Subject, count: int) -> NDArray[np.int64]:
    """[S, L] whole sequences of the test split, drawn once."""
    split = parent.exam.prepared.splits["test"]
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(HELD_OUT_SEED)).tolist()
    rows = [split.batch([row]) for row in order]
    return np.concatenate([row["input_ids"].numpy() for row in rows if (row["labels"] >= 0).all()][:count])


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]
