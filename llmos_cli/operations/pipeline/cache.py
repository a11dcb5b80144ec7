"""A cache of stages' results outside the workspace (`run --cache-dir`): what one CI job made, the next one need not make again.

    results/<key>.json     as in the workspace's memory, with the files of the runs that measured it
    checkpoints/<id>.json  manifests, ancestors too
    objects/<sha256>       contents of checkpoints, outputs and runs

Everything is written whole before what names it, and hashed when it comes back: a cache that was cut off, or damaged, is one
that holds less.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, manifest, storing
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.objects import files_below, hash_file
from llmos_cli.core.refs import RUNS
from llmos_cli.operations.pipeline.memory import Memory, Result, place, result_of

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

STATE = "state/"


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._scratch = self.folder / "tmp"

    def save(self, ws: Workspace, result: Result) -> None:
        """Contents first, the record of them last."""
        if result.checkpoint:
            for each in _line(ws, result.checkpoint):
                self._save_checkpoint(ws, each)
        for name, sha256 in result.outputs.items():
            place(ws.root / name, self._object(sha256), scratch=self._scratch)
        value = {**asdict(result), "run_files": {run: self._save_run(ws, run) for run in result.runs}}
        self._write(self.folder / "results" / f"{result.key}.json", value)

    def result(self, key: str) -> Result | None:
        found = self._read(key)
        return found[0] if found else None

    def bring_back(self, ws: Workspace, memory: Memory, key: str) -> Result | None:
        """Make a result part of the workspace again; None where something of it is missing or damaged."""
        found = self._read(key)
        if found is None:
            return None
        result, run_files = found
        if result.checkpoint and not self._bring_line(ws, result.checkpoint):
            return None
        for sha256 in result.outputs.values():
            if not self._whole(sha256):
                return None
            place(self._object(sha256), memory.contents(sha256), scratch=ws.dot / "tmp")
        runs = tuple(run for run, files in run_files.items() if self._bring_run(ws, run, files, result.checkpoint))
        back = replace(result, runs=runs)
        memory.keep(back)
        return back

    def _save_checkpoint(self, ws: Workspace, found: Manifest) -> None:
        path = self.folder / "checkpoints" / f"{found.id}.json"
        if path.exists():
            return
        kept = found.id not in ws.dropped
        for name, entry in found.tree.items() if kept else ():
            place(ws.checkpoints / found.id / name, self._object(entry.sha256), scratch=self._scratch)
        self._write(path, {**found.to_json(), "weights": kept})

    def _save_run(self, ws: Workspace, run: str) -> dict[str, str]:
        """Its record, without what only resuming it needs: name -> SHA-256."""
        folder, files = ws.root / "runs" / run, {}
        for name in files_below(folder):
            if not name.startswith(STATE):
                files[name] = hash_file(folder / name).sha256
                place(folder / name, self._object(files[name]), scratch=self._scratch)
        return files

    def _bring_line(self, ws: Workspace, checkpoint: str) -> bool:
        """A checkpoint and its ancestors, those first; what the workspace has stays."""
        there = (ws.checkpoints / checkpoint).is_dir() and checkpoint not in ws.dropped
        if there:
            return True
        text = self._text(self.folder / "checkpoints" / f"{checkpoint}.json")
        if text is None:
            return False
        found = manifest.parse(text)
        if found.id != checkpoint or manifest.identify(found.tree, found.made) != checkpoint:
            return False
        if not all(self._bring_line(ws, parent) for parent in found.made.parents):
            return False
        return self._bring(ws, found) if json.loads(text)["weights"] else _bring_manifest(ws, found)

    def _bring(self, ws: Workspace, found: Manifest) -> bool:
        if not all(self._whole(entry.sha256) for entry in found.tree.values()):
            return False
        with ws.stage() as staged:
            for name, entry in found.tree.items():
                place(self._object(entry.sha256), staged / name, scratch=ws.dot / "tmp")
            prepared = storing.prepare(ws, staged, found.made)
            if prepared.checkpoint.id != found.id:
                return False
            with ws.oplog.locked(ws.emit):
                storing.publish(ws, prepared)
        return True

    def _bring_run(self, ws: Workspace, run: str, files: Mapping[str, str], checkpoint: str) -> bool:
        """The numbers it measured are in its events."""
        if not (ws.root / "runs" / run).is_dir():
            if not all(self._whole(sha256) for sha256 in files.values()):
                return False
            with ws.stage() as staged:
                for name, sha256 in files.items():
                    place(self._object(sha256), staged / name, scratch=ws.dot / "tmp")
                atomic.publish(staged, ws.root / "runs" / run)
        if checkpoint and ws.refs.read(RUNS + run) is None and _committed(ws, run) == checkpoint:
            with ws.oplog.locked(ws.emit):
                ws.refs.write(RUNS + run, checkpoint)
        return True

    def _read(self, key: str) -> tuple[Result, Mapping[str, Mapping[str, str]]] | None:
        text = self._text(self.folder / "results" / f"{key}.json")
        if text is None:
            return None
        try:
            value = json.loads(text)
            runs = value.pop("run_files")
            return result_of(value), runs
        except (ValueError, KeyError, TypeError):
            return None

    def _object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256.removesuffix("+x")

    def _whole(self, sha256: str) -> bool:
        path = self._object(sha256)
        return path.is_file() and hash_file(path).sha256 == sha256.removesuffix("+x")

    def _text(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, path: Path, value: Mapping[str, object]) -> None:
        atomic.write_text(path, json.dumps(value, default=str) + "\n", scratch=self._scratch)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _line(ws: Workspace, checkpoint: str) -> Iterator[Manifest]:
    """With all ancestors."""
    seen: set[str] = set()
    waiting = [checkpoint]
    while waiting:
        found = ws.manifest(waiting.pop())
        if found.id not in seen:
            seen.add(found.id)
            yield found
            waiting += found.made.parents


def _bring_manifest(ws: Workspace, found: Manifest) -> bool:
    """Of an ancestor whose weights had been removed when it was saved."""
    if (ws.checkpoints / found.id).is_dir():
        return True
    with ws.stage() as staged:
        found.write(staged)
        with ws.oplog.locked(ws.emit):
            if atomic.publish(staged, ws.checkpoints / found.id):
                ws.dropped.drop(ws.checkpoints / found.id)
    return True


def _committed(ws: Workspace, run: str) -> str:
    record = ws.index.record(run)
    return record.checkpoint if record else ""
