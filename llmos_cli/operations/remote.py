"""remote: other places that hold this workspace's checkpoints; their names stand in llmos.yaml."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from llmos_cli import transports
from llmos_cli.catalog import did_you_mean
from llmos_cli.core import atomic, audit, heard, lines, urls, yaml12
from llmos_cli.core.key import make_key, read_key
from llmos_cli.core.listing import read_text
from llmos_cli.core.locks import lock
from llmos_cli.core.operation import Change, Operation
from llmos_cli.core.processes import host
from llmos_cli.core.refs import REMOTES
from llmos_cli.core.remote.downloading import FOLDER
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.settings import FIRST, NAME, must_be_there
from llmos_cli.core.view import Lines, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import ConfigError, LlmosError, NotFound, Untrusted, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations.log import aligned

SETTINGS = NAME
ORIGIN = "origin"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")
_KEYS = {"url", "encrypted", "key_file"}


@dataclass(frozen=True)
class RemoteSettings:
    """`key_file`: where the key of an encrypted remote is, relative to the workspace; empty where LLMOS_KEY has it."""

    name: str
    url: str
    encrypted: bool = False
    key_file: str = ""

    def to_yaml(self) -> dict[str, str | bool]:
        """The dotted keys of llmos.yaml."""
        said: dict[str, str | bool] = {"url": self.url, "encrypted": self.encrypted, "key_file": self.key_file}
        return {f"remotes.{self.name}.{key}": value for key, value in said.items() if value}


@dataclass(frozen=True)
class RemoteResult:
    """`verb`: added or removed; `new_key`: whether its key was made just now."""

    verb: str
    remote: RemoteSettings
    new_key: bool = False

    def view(self) -> View:
        said = f"remote {self.remote.name} {self.verb}: {self.remote.url}" + (
            ", encrypted" if self.remote.encrypted else ""
        )
        if not self.new_key:
            return said
        return Lines(
            [
                said,
                f"a new key is in {self.remote.key_file}: keep a copy elsewhere, nothing there can be read without it",
            ]
        )


@dataclass(frozen=True)
class RemotesResult:
    """`refs`: how many branches and tags each had when it was last heard of."""

    remotes: tuple[RemoteSettings, ...]
    refs: tuple[int, ...]

    def view(self) -> View:
        if not self.remotes:
            return "no remotes yet: `llmos remote add origin URL` names the first"
        counted = zip(self.remotes, self.refs, strict=True)
        rows = [[each.name, each.url, "encrypted" if each.encrypted else "", _told(count)] for each, count in counted]
        return Lines(aligned(rows))


def _told(count: int) -> str:
    return f"{count} branch{'es' if count > 1 else ''} and tags known" if count else "never heard of"


def add(
    ws: Workspace, name: str, url: str, *, encrypted: bool = False, key_file: str = "", emit: Emit = ignore
) -> RemoteResult:
    """A `key_file` that is not there yet is made, with a new key, unless the remote is there already. One that cannot be looked at is
    added all the same."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name for a remote", hint="small letters, digits, `-` and `_`: `origin`")
    known = settings(ws)
    if name in known:
        raise UsageError(
            f"there is a remote {name} already: {known[name].url}", hint=f"`llmos remote rm {name}` forgets it"
        )
    place = described(ws, name, url, encrypted=encrypted, key_file=key_file)
    _check_own_folder(ws, place)
    new_key = bool(key_file) and not key_path(ws, place).exists()
    _look(ws, place, new_key, emit)
    if new_key and not ws.oplog.rehearsing:
        make_key(key_path(ws, place))
    from llmos_cli.core import config_edit

    before = _text(ws)
    after = config_edit.edited(before or FIRST, place.to_yaml(), file=SETTINGS)
    ws.oplog.apply(f"remote add {name}", [Change(SETTINGS, before, after)], emit=ws.emit)
    return RemoteResult("added", place, new_key)


def _check_own_folder(ws: Workspace, place: RemoteSettings) -> None:
    """What is pushed into the workspace's own folders would be taken for its own."""
    if transports.scheme(place.url) == "file":
        folder = (ws.root / urls.local(place.url)).resolve()
        own = (ws.checkpoints, ws.root / "runs", ws.configs, ws.dot)
        if folder == ws.root or any(folder.is_relative_to(each) for each in own):
            raise UsageError(
                f"{place.url} is where this workspace keeps its own files",
                hint="name a folder of the remote's own, best on another disk",
            )


def _look(ws: Workspace, place: RemoteSettings, new_key: bool, emit: Emit) -> None:
    """Refused is what nothing could be pushed to. Where there is no way to it today, or it is damaged, that is told: it may be mended."""
    key = None if new_key else _key(ws, place)
    try:
        store = transports.open_store(place.url, ws.root, _identity(ws))
    except (UsageError, NotFound, Untrusted):
        raise
    except LlmosError as error:
        emit(_unseen(place, error.message))
        return
    try:
        there = Remote(place.name, place.url, store, key)
        if new_key:
            _check_takes_new_key(there, place)
        there.must_be_ours()
    except (UsageError, Untrusted):
        raise
    except LlmosError as error:
        emit(_unseen(place, error.message))
    except OSError as error:
        emit(_unseen(place, f"{place.url}: {error.strerror}"))
    finally:
        store.close()


def _unseen(place: RemoteSettings, why: str) -> Note:
    return Note(f"nobody could look at what is in {place.name} already: {why}", "warning")


def _check_takes_new_key(there: Remote, place: RemoteSettings) -> None:
    if there.is_encrypted:
        raise Untrusted(
            f"{there.url} is encrypted with another key, and there is no {place.key_file}",
            hint="a new key would open nothing that is there: name the file that has its own",
        )
    if there.is_encrypted is not None:
        raise Untrusted(
            f"{there.url} is not encrypted, and has begun", hint="an unencrypted remote is added without a key"
        )


def described(ws: Workspace, name: str, url: str, *, encrypted: bool, key_file: str) -> RemoteSettings:
    """As they are kept: what was given relative to the current folder is relative to the workspace from then on."""
    return RemoteSettings(name, portable(ws, url), encrypted or bool(key_file), key_file and portable(ws, key_file))


def key_path(ws: Workspace, place: RemoteSettings) -> Path:
    return (ws.root / urls.path(place.key_file)).resolve()


def remove(ws: Workspace, name: str) -> RemoteResult:
    """Forgets the name and what was known of its branches; what is there stays there."""
    from llmos_cli.core import config_edit  # here: pushing and fetching edit nothing

    place = named(ws, name)
    before = str(_text(ws))
    after = config_edit.without(before, f"remotes.{name}", file=SETTINGS)
    ws.oplog.apply(f"remote rm {name}", [Change(SETTINGS, before, after), *_forgotten(ws, name)], emit=ws.emit)
    return RemoteResult("removed", place)


def forgotten_with(ws: Workspace, undone: Operation) -> Iterator[Change]:
    """What is known of the remotes that undoing an operation takes out of llmos.yaml: another one of the name would be taken for it."""
    for change in undone.changes:
        if change.what == SETTINGS:
            for name in _said(change.after or "").keys() - _said(change.before or "").keys():
                yield from _forgotten(ws, name)


def _forgotten(ws: Workspace, name: str) -> Iterator[Change]:
    for ref, value in ws.refs.under(REMOTES).items():
        if ref.startswith(f"{name}/"):
            yield Change(f"{REMOTES}{ref}", value, None)
    if heard.read(ws, name) is not None:
        yield Change(file := heard.file_of(name), read_text(ws.root / file), None)


def remotes(ws: Workspace) -> RemotesResult:
    known = settings(ws)
    heard = list(ws.refs.names(REMOTES))
    return RemotesResult(
        tuple(known.values()), tuple(sum(ref.startswith(f"{name}/") for ref in heard) for name in known)
    )


def settings(ws: Workspace) -> dict[str, RemoteSettings]:
    """`remotes:` of llmos.yaml: name -> `{url: ...}`, or the URL alone."""
    return _said(_text(ws) or "")


def _said(text: str) -> dict[str, RemoteSettings]:
    node = yaml12.parse(text, SETTINGS).mapping.get("remotes")
    if node and node.value is not None and not isinstance(node.value, dict):
        raise ConfigError(
            "remotes are no mapping", hint="write `remotes: {origin: {url: /mnt/models}}`", place=node.place
        )
    found: dict[str, RemoteSettings] = {}
    for name, each in (node.mapping if node else {}).items():
        value = each.plain()
        value = {"url": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("url"), str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"remote {name} has no url", hint="write `remotes: {origin: {url: /mnt/models}}`", place=each.place
            )
        if not isinstance(value.get("key_file", ""), str) or not isinstance(value.get("encrypted", False), bool):
            raise ConfigError(
                f"remote {name} has a key_file or encrypted that cannot be",
                hint="a path; true or false",
                place=each.place,
            )
        if unknown := sorted(set(value) - _KEYS):
            raise ConfigError(
                f"remotes.{name}.{unknown[0]} is unknown", hint=did_you_mean(unknown[0], _KEYS), place=each.place
            )
        key_file = value.get("key_file", "")
        found[name] = RemoteSettings(name, value["url"], value.get("encrypted", False) or bool(key_file), key_file)
    return found


def named(ws: Workspace, name: str | None) -> RemoteSettings:
    """The remote of that name; without one `origin`, or the only one there is."""
    known = settings(ws)
    if name is None:
        name = ORIGIN if ORIGIN in known or not known else next(iter(known)) if len(known) == 1 else ""
    if not name:
        raise UsageError(f"which remote: {', '.join(known)}?", hint="--remote NAME says so")
    if name not in known:
        hint = did_you_mean(name, known) if known else f"`llmos remote add {name} URL` names one"
        raise NotFound(f"there is no remote {name}", hint=hint)
    return known[name]


def opened(ws: Workspace, place: RemoteSettings) -> Remote:
    key = _key(ws, place)
    return Remote(place.name, place.url, transports.open_store(place.url, ws.root, _identity(ws)), key)


def _key(ws: Workspace, place: RemoteSettings) -> bytes | None:
    file = key_path(ws, place) if place.key_file else None
    return read_key(file, f"remote {place.name}") if place.encrypted else None


def is_missing(ws: Workspace, there: Remote) -> bool:
    """Whether it had branches when it was last heard of, or was sent something since it was added, and has nothing: a folder where no disk
    is mounted looks like a new remote."""
    return not there.is_begun and (any(True for _ in ws.refs.names(f"{REMOTES}{there.name}/")) or _was_sent(ws, there))


def _was_sent(ws: Workspace, there: Remote) -> bool:
    """By the audit log: of a backup nothing else here tells."""
    log = ws.oplog.audit.path
    sent = next(lines.holding(log, f' to {there.name}"}}'.encode()), None)
    added = next(lines.holding(log, f'"what": "remote add {there.name}"'.encode()), None)
    last, begun = (audit.parse(line) if line else None for line in (sent, added))
    return last is not None and (begun is None or begun.number < last.number)


def must_not_be_missing(ws: Workspace, there: Remote) -> None:
    """NotFound rather than beginning it anew, half filled, where nobody would look for the rest."""
    if is_missing(ws, there):
        raise NotFound(
            f"nothing is at {there.url}, and {there.name} was sent something",
            hint=f"is its disk mounted? Where it is gone for good, `llmos remote rm {there.name}` and `remote add` begin it anew",
        )


def turn(ws: Workspace, place: RemoteSettings) -> AbstractContextManager[None]:
    """One push or fetch of a remote at a time: they share what is unfinished."""
    if ws.oplog.rehearsing:
        return nullcontext()
    return lock(ws.dot / "locks" / f"remote-{place.name}", emit=ws.emit)


@contextmanager
def fetching(ws: Workspace, place: RemoteSettings) -> Iterator[None]:
    """One fetch at a time, of whatever remote: what has come is in one folder, which is removed when all of it has its place."""
    with turn(ws, place), nullcontext() if ws.oplog.rehearsing else lock(ws.dot / "locks" / FOLDER, emit=ws.emit):
        yield


def _identity(ws: Workspace) -> str:
    """Tells this workspace's unfinished uploads from another's, a copy of it included: kept, so that they are found again."""
    path = ws.dot / "identity"
    if not path.exists() and (ws.oplog.rehearsing or not ws.writable):
        return "nobody"
    if not path.exists():
        atomic.write_text(path, os.urandom(8).hex() + "\n", scratch=ws.dot / "tmp")
    place = ws.dot.stat()
    return hashlib.sha256(
        f"{read_text(path, errors='replace')} {host()} {place.st_dev} {place.st_ino}".encode()
    ).hexdigest()[:16]


def portable(ws: Workspace, url: str) -> str:
    """A path that was given relative to the current folder is kept relative to the workspace; a password is not kept at all."""
    parts = urls.split(url)
    if transports.scheme(url) == "file":
        path = urls.local(url)
        return str(path) if path.is_absolute() else os.path.relpath(path.resolve(), ws.root)
    if parts.password:
        raise UsageError(
            "a password in a URL would be kept in llmos.yaml, for everybody to read",
            hint="use a key of your ssh agent, or the environment variables of the service",
        )
    return url


def _text(ws: Workspace) -> str | None:
    must_be_there(ws.root)
    path = ws.root / SETTINGS
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError:
        raise ConfigError(f"{SETTINGS} is not UTF-8 text", hint="a config is a YAML file") from None
