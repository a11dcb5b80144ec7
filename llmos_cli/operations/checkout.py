"""checkout: move HEAD to a branch or a checkpoint, and with --configs bring back the configs it was made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import kept
from llmos_cli.core.listing import read_text
from llmos_cli.core.operation import Change
from llmos_cli.core.redaction import redacted
from llmos_cli.core.refs import HEAD, HEADS, SYMBOLIC, check_name
from llmos_cli.core.view import Lines, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, NotFound, UsageError
from llmos_cli.operations.named import check_free


@dataclass(frozen=True)
class CheckoutResult:
    """`branch` is None when HEAD is detached; `restored`: config files that were written."""

    branch: str | None
    checkpoint: str | None
    restored: tuple[str, ...]

    def view(self) -> View:
        at = f"at {self.checkpoint[:12]}" if self.checkpoint else "which has no checkpoint yet"
        where = f"on branch {self.branch}, {at}" if self.branch else f"HEAD is detached {at}"
        return Lines([where, *(f"restored {name}" for name in self.restored)])


def checkout(
    ws: Workspace, rev: str = "HEAD", *, create: str | None = None, configs: bool = False, force: bool = False
) -> CheckoutResult:
    """`create`: make this branch at `rev` and move to it. `force`: overwrite configs that were edited."""
    before = ws.oplog.said(HEAD)
    target, checkpoint, changes = _target(ws, rev, create)
    if target != before or ws.refs.senseless(HEAD):
        changes.append(Change(HEAD, before, target))
    restored = list(_config_changes(ws, checkpoint, force)) if configs else []
    if changes or restored:
        ws.oplog.apply(
            f"checkout {create or rev}{' --configs' if configs else ''}", [*changes, *restored], emit=ws.emit
        )
    branch = target.removeprefix(SYMBOLIC + HEADS) if target and target.startswith(SYMBOLIC) else None
    return CheckoutResult(branch, checkpoint, tuple(change.what for change in restored))


def _target(ws: Workspace, rev: str, create: str | None) -> tuple[str | None, str | None, list[Change]]:
    """What HEAD should say, the checkpoint that is, and the ref to be made for it."""
    if create is not None:
        return _new_branch(ws, rev, create)
    if rev in (HEAD, "@"):
        return ws.refs.read(HEAD), ws.head().checkpoint, []
    name = rev.removeprefix("refs/").removeprefix("heads/")
    if _branch(ws, name) is not None:
        return f"{SYMBOLIC}{HEADS}{name}", ws.resolve(HEADS + name), []
    checkpoint = ws.resolve(rev)
    return checkpoint, checkpoint, []


def _branch(ws: Workspace, name: str) -> str | None:
    """A branch wins over a tag and an id of the same name: it is what one can be on."""
    return ws.refs.read(HEADS + name) if name in ws.refs.names(HEADS) else None


def _new_branch(ws: Workspace, rev: str, name: str) -> tuple[str, str | None, list[Change]]:
    ref = HEADS + check_name("branch", name)
    if ws.refs.read(ref):
        raise UsageError(f"there is a branch {name} already", hint=f"`llmos checkout {name}` moves to it")
    check_free(ws, HEADS, name)
    if rev in (HEAD, "@") and ws.head().checkpoint is None:
        return SYMBOLIC + ref, None, []
    checkpoint = ws.resolve(rev)
    return SYMBOLIC + ref, checkpoint, [Change(ref, None, checkpoint)]


def _config_changes(ws: Workspace, checkpoint: str | None, force: bool) -> Iterator[Change]:
    """The user's files as the run that made the checkpoint kept them, where they differ from those of today."""
    for file in _kept_configs(ws, checkpoint):
        now, then = ws.configs / file.name, file.read_text(encoding="utf-8")
        before = read_text(now, linked=True) if now.exists() else None
        if before == then:
            continue
        if before is not None and not force and not _known(ws, now.name, before):
            raise Conflict(
                f"configs/{now.name} was edited since its last run, and nothing else holds that text",
                hint="copy it away first, or overwrite it with --force",
            )
        yield Change(f"configs/{now.name}", before, then)


def _kept_configs(ws: Workspace, checkpoint: str | None) -> list[Path]:
    makers = [run for run, _ in ws.index.makers(checkpoint)] if checkpoint else []
    given = next((found for run in makers if (found := kept.configs(ws.root / "runs" / run))), [])
    if not given:
        raise NotFound(
            f"no run in this workspace kept the configs of {checkpoint[:12] if checkpoint else 'this branch'}",
            hint=f"`llmos show {checkpoint[:12]}` prints the resolved config"
            if checkpoint
            else "`llmos train` makes the first checkpoint",
        )
    return given


def _known(ws: Workspace, name: str, text: str) -> bool:
    """Whether a config equals what a template ships or what some run was given."""
    from importlib.resources import files

    templates = (folder / name for folder in files("llmos_cli.configs").iterdir() if folder.is_dir())
    if any(shipped.is_file() and shipped.read_text(encoding="utf-8") == text for shipped in templates):
        return True
    copies = (record.path / "configs" / name for record in ws.runs.list())
    return any(copy.is_file() and copy.read_text(encoding="utf-8") == redacted(text) for copy in copies)
