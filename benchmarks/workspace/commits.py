"""A checkpoint of `--mib`, against writing, syncing and hashing its bytes once; then its child with one of 16 blocks changed.

    python -m benchmarks.workspace.commits write|first|second FOLDER MIB SEED      what is timed: seconds on stdout, as JSON

The tensors are made before the clock starts, in all three. What DVC and git-annex take for the same files, which somebody else has
written before, stands beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workspace import peers
from benchmarks.workspace.timing import Row, Seconds, Turn, command, do, least, timed
from llmos_cli.core.manifest import Made
from llmos_cli.core.objects import cores
from llmos_cli.core.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = 16


def commits(scratch: Path, options: argparse.Namespace) -> Iterator[Row]:
    place = Workspace.create(scratch / "commits").root
    kinds = ("write", "first", "second")
    took: dict[str, list[Seconds]] = {kind: [] for kind in (*kinds, "fsck", "sha256sum")}
    for seed in range(max(options.turns // 2, 1)):
        for kind in kinds:
            took[kind].append(_child(kind, scratch / "plain" if kind == "write" else place, options.mib, seed))
        shutil.rmtree(scratch / "plain")
        _check_stored(place, options.mib)
        took["sha256sum"].append(timed(_hashing(place)))
        took["fsck"].append(timed(command(place, "fsck")))
    best = {kind: least(each) for kind, each in took.items()}
    yield Row("commit", best["first"], "write, fsync, SHA-256 once", best["write"], 1.2)
    yield Row("commit", best["first"], "write, fsync, SHA-256 once", best["write"], 1.2, wall=True)
    yield Row("commit, one block of 16 changed", best["second"], "the first commit", best["first"], 0.25)
    yield Row(
        "fsck of large files", best["fsck"], f"sha256sum in {cores()} processes", best["sha256sum"], 1.2, wall=True
    )
    for peer, (first, second, fsck) in peers.added(scratch, _files(place)).items():
        yield Row("commit, written and stored", best["first"], f"{peer} add, written already", first)
        yield Row("commit, one block of 16 changed", best["second"], f"{peer} add, written already", second)
        if fsck:
            yield Row("fsck of large files", best["fsck"], f"{peer} fsck", fsck)


def _child(kind: str, folder: Path, mib: int, seed: int) -> Seconds:
    words = [sys.executable, "-m", "benchmarks.workspace.commits", kind, str(folder), str(mib), str(seed)]
    return Seconds(**json.loads(do(Path(__file__).parents[2], *words)))


def _check_stored(place: Path, mib: int) -> None:
    ws = Workspace(place)
    stored = ws.index.makers(ws.resolve())[-1][1]
    print(f"-- second commit stored {stored / 2**20:.1f} MiB of {mib}, a block has {mib / BLOCKS:g}")
    if stored > mib * 2**20 / BLOCKS + 2**16:
        raise SystemExit("more than the changed block was stored")


def _hashing(place: Path) -> Turn:
    """Each inode once, as `fsck` does."""
    found = "find .llmos/objects checkpoints -type f ! -name manifest.json -printf '%i %p\\n' | sort -u -k1,1 | cut -d' ' -f2-"
    return Turn(["sh", "-c", f"{found} | xargs -n 64 -P {cores()} sha256sum"], place)


def _files(place: Path) -> list[Path]:
    """The shards of the last commit; the first of them are what a peer stores, the last one what changes."""
    return sorted((place / "checkpoints" / Workspace(place).resolve()).glob("*.safetensors"))


# In a process of its own


def child(kind: str, folder: Path, mib: int, seed: int) -> Seconds:
    from llmos_cli.models.rewrite import rewritten
    from llmos_cli.models.save import write_shards

    state = _state(mib, seed)
    other = _state(mib // BLOCKS, seed + 1000, first=BLOCKS - 1) if kind == "second" else {}
    started = Seconds.of_this()
    if kind == "write":
        _write(folder, state)
        return Seconds.of_this() - started
    ws = Workspace(folder)
    parents = (ws.resolve(),) if kind == "second" else ()
    made = Made("train", parents, {"seed": seed}, {}, {}, 0, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    with ws.begin("train", config={}, parents=parents) as run, ws.stage() as staged:
        if kind == "first":
            write_shards(state, staged)
        else:
            rewritten(other, ws.checkpoint().path, staged)
        run.commit(staged, made)
    return Seconds.of_this() - started


def _state(mib: int, seed: int, first: int = 0) -> Mapping[str, Tensor]:
    """One tensor a block, that no two seeds share a byte of."""
    import torch

    count = BLOCKS - first
    size = mib * 2**20 // count
    return {
        f"model.layers.{number}.weight": torch.frombuffer(
            bytearray(f"{seed} {number}".encode().ljust(16) * (size // 16)), dtype=torch.bfloat16
        )
        for number in range(first, BLOCKS)
    }


def _write(folder: Path, state: Mapping[str, Tensor]) -> None:
    import torch

    folder.mkdir()
    for name, value in state.items():
        with open(folder / name, "xb") as file:
            file.write(value.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        with open(folder / name, "rb") as file:
            hashlib.file_digest(file, "sha256")


if __name__ == "__main__":
    print(json.dumps(asdict(child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))))
