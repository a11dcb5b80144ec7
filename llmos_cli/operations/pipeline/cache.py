"""A cache of stages' results outside the workspace (`run --cache-dir`): what one CI job made, the next one need not make again.

It is a remote with one more kind of file, `results/<key>.json`. So it may lie wherever a remote may, everything is hashed on its
way in and looked at before it is believed, and what names something is written after that. A cache that is damaged holds less, until the stage is made again: what that made is
put in the place of what was damaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, urls
from llmos_cli.core.objects import hash_file
from llmos_cli.core.refs import ID
from llmos_cli.core.remote import arriving, downloading, hostile, layout, receiving, sending
from llmos_cli.core.remote.parallel import Meter
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import whole
from llmos_cli.errors import UNREADABLE, Corrupt, NotFound, Untrusted
from llmos_cli.events import Emit, Note
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.pipeline import answer, code
from llmos_cli.operations.pipeline.memory import Memory, Result, result_of
from llmos_cli.operations.pipeline.stages import Stage, overlap, writable
from llmos_cli.operations.remote import RemoteSettings

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace

NAME = "cache"


class Cache:
    """`where`: a folder, a URL, or the name of a remote; `stages`: those that may run what comes from there."""

    def __init__(self, ws: Workspace, where: str, stages: Sequence[Stage]) -> None:
        self._ws, self._stages = ws, stages
        self._place = remotes.settings(ws).get(where) or RemoteSettings(NAME, _url(where))
        self._damaged: set[str] = set()
        """Keys of results of which something there is missing or damaged."""

    def save(self, result: Result, emit: Emit) -> None:
        """The checkpoint with its line, whatever was measured of those that it read, the outputs; and only then the result."""
        again = result.key in self._damaged  # else what is there has its size, and stays
        with remotes.turn(self._ws, self._place), self._opened() as remote:
            read = [str(each) for each in result.facts["revisions"].values()]
            sending.send(remote, sending.lacking(self._ws, remote, [*filter(None, [result.checkpoint]), *read]), emit)
            if again and result.checkpoint:
                _send_weights_again(remote, self._ws.checkpoint(result.checkpoint))
            for name, sha256 in result.outputs.items():
                _send_output(remote, self._ws.root / name, sha256, again=again)
            remote.store.put(layout.result_name(result.key), whole(text_of(result)), lambda _: None)
        self._damaged.discard(result.key)

    def has(self, key: str) -> bool:
        """Whether something is remembered there, whatever it is worth."""
        with self._opened() as remote:
            return remote.is_begun and remote.store.size(layout.result_name(key)) is not None

    def result(self, stage: Stage, key: str, emit: Emit) -> Result | None:
        """What is remembered there; None, with a warning, where it makes no sense."""
        with self._opened() as remote:
            return self._read(remote, stage, key, emit)

    def bring_back(self, stage: Stage, memory: Memory, key: str, emit: Emit) -> Result | None:
        """Make a result part of the workspace again; None where something of it is missing or damaged, which is told."""
        with remotes.fetching(self._ws, self._place), self._opened() as remote:
            result = self._read(remote, stage, key, emit)
            if result is None:
                return None
            try:
                self._bring(remote, result, memory, emit)
                outputs = result.outputs
                if untrusted := code.foreign(
                    self._ws, outputs, self._stages, lambda name: memory.contents(outputs[name])
                ):
                    raise Untrusted(f"{untrusted} may be code and was not made here", hint="it is made anew")
            except (Corrupt, NotFound, Untrusted) as error:
                self._damaged |= set() if isinstance(error, Untrusted) else {key}
                emit(Note(f"{stage.name} cannot be had from the cache: {error.message}", level="warning"))
                return None
        memory.keep(result)
        return result

    def _bring(self, remote: Remote, result: Result, memory: Memory, emit: Emit) -> None:
        checkpoints = [*filter(None, [result.checkpoint])]
        coming = receiving.lacking(self._ws, remote, checkpoints, weights=checkpoints)  # those removed here come again
        downloading.receive(self._ws, remote, coming, emit)
        with arriving.staged(self._ws, coming) as prepared:
            with self._ws.oplog.locked(self._ws.emit):
                arriving.publish(self._ws, prepared, coming)
                if changes := arriving.signed(self._ws, coming):
                    self._ws.oplog.apply_locked(f"fetch signatures from {self._place.name}", changes)
            arriving.publish_runs(self._ws, coming)
        for sha256 in result.outputs.values():
            _receive_output(remote, memory.contents(sha256), sha256.removesuffix("+x"), emit)

    def _read(self, remote: Remote, stage: Stage, key: str, emit: Emit) -> Result | None:
        text = remote.store.read(layout.result_name(key), hostile.MANIFEST_LIMIT) if remote.is_begun else None
        if text is None:
            return None
        try:
            result = result_of(layout.parse(text))
            sound = result.key == key and _sound(result, stage)
        except UNREADABLE:
            sound = False
        if not sound:
            emit(Note(f"what the cache says of {stage.name} makes no sense, and is not believed", level="warning"))
            return None
        if result.checkpoint and not (remote.has_weights(result.checkpoint) or remote.has_seal(result.checkpoint)):
            emit(Note(f"the cache does not have the weights that {stage.name} made", level="warning"))
            return None
        return result

    @contextmanager
    def _opened(self) -> Iterator[Remote]:
        remote = remotes.opened(self._ws, self._place)
        try:
            yield remote
        finally:
            remote.store.close()


def text_of(result: Result) -> bytes:
    """As it is kept at a remote."""
    return layout.text(json.loads(json.dumps(asdict(result), default=str)))


def _url(where: str) -> str:
    return where if "://" in where else str(urls.path(where).absolute())


def _sound(result: Result, stage: Stage) -> bool:
    """Whether it can be what this stage made: files where it writes, hashes that are ones."""
    mine = stage.options.outputs
    return (
        (result.checkpoint == "" or ID.fullmatch(result.checkpoint) is not None)
        and all(ID.fullmatch(sha256.removesuffix("+x")) for sha256 in result.outputs.values())
        and all(writable(name) and _within(name, mine) for name in result.outputs)
        and answer.is_one(result.said)
        and isinstance(result.facts, dict)
    )


def _within(name: str, outputs: Sequence[str]) -> bool:
    return any(overlap(name, output) and len(name) >= len(output.rstrip("/")) for output in outputs)


def _send_weights_again(remote: Remote, checkpoint: Checkpoint) -> None:
    for name, entry in checkpoint.manifest.tree.items():
        content = sending.content(checkpoint.path / name, entry)
        remote.store.put(layout.object_name(entry.sha256), content, lambda _: None)


def _send_output(remote: Remote, path: Path, sha256: str, *, again: bool) -> None:
    entry = hash_file(path)
    if entry.sha256 != sha256.removesuffix("+x"):
        raise Corrupt(f"{path.name} changed while it was put into the cache", hint="`llmos run` makes it anew")
    if again or remote.store.size(layout.object_name(entry.sha256)) != entry.size:
        remote.store.put(layout.object_name(entry.sha256), sending.content(path, entry), lambda _: None)


def _receive_output(remote: Remote, path: Path, sha256: str, emit: Emit) -> None:
    size = remote.store.size(layout.object_name(sha256))
    if size is None:
        raise NotFound(f"the contents of an output ({sha256[:12]}) are missing", hint="it is made anew")
    atomic.make_directory(path.parent)
    meter = Meter("fetch", size, emit)
    downloading.download(remote, path.parent, sha256, size, meter)
    atomic.sync_directory(path.parent)
    meter.end()
