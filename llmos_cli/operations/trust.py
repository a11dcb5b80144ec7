"""Trust code of a workspace, list what is trusted, or take it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import trust as store
from llmos_cli.core.config import read_file
from llmos_cli.core.view import Span, Table
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import ConfigError, LlmosError


@dataclass(frozen=True)
class TrustedFile:
    path: str
    sha256: str
    current: bool
    """Whether the file, or the command of the pipeline, has this content now, and it is trusted."""


@dataclass(frozen=True)
class TrustResult:
    """`files`: what is trusted here afterwards."""

    files: tuple[TrustedFile, ...]

    def view(self) -> Table | str:
        if not self.files:
            return "No code is trusted here."
        state = {True: Span("as trusted", "good"), False: Span("changed or gone", "warn")}
        return Table(
            ["file", "sha256", "now"], [(file.path, file.sha256[:12], state[file.current]) for file in self.files]
        )


def trust(ws: Workspace, path: Path | None = None, *, pipeline: bool = False, revoke: str | None = None) -> TrustResult:
    if path is not None:
        store.trust(ws, path)
    if pipeline:
        _trust_pipeline(ws)
    if revoke is not None:
        store.revoke(ws, revoke)
    listed = sorted(store.trusted(ws).items(), key=lambda item: item[1])
    commands = _commands(ws) if any(name.startswith(store.COMMAND) for _, name in listed) else {}
    return TrustResult(tuple(_file(ws, name, digest, commands) for digest, name in listed))


def _trust_pipeline(ws: Workspace) -> None:
    from llmos_cli.operations.pipeline import code, stages

    contents: dict[str, bytes] = {}
    for stage in stages.read(ws):
        if stage.options.sh is not None:
            contents[code.name_of(stage)] = store.command_content(stage.options.sh)
            contents |= dict(store.named(ws, ws.root / script) for script in code.files(ws, stage, None))
    store.trust_contents(ws, contents)


def _commands(ws: Workspace) -> dict[str, str]:
    """The pipeline's commands as they are now: name -> hash; none where there is no pipeline that can be read."""
    from llmos_cli.operations.pipeline import code, stages

    try:
        found = stages.read(ws)
    except LlmosError:
        return {}
    return {code.name_of(stage): store.digest_text(stage.options.sh) for stage in found if stage.options.sh is not None}


def named_code(ws: Workspace) -> Iterator[TrustedFile]:
    """The file of code that `configs/train.yaml` names, where it is there, and whether its content is trusted.

    Nothing is trusted by being there: a folder that was cloned or unpacked is as full of somebody's code as one's own.
    """
    path = ws.configs / "train.yaml"
    try:
        model = read_file(path, ws.root).mapping.get("model") if path.is_file() else None
    except ConfigError:
        return  # `llmos config check` says what is wrong with it
    module = model.mapping.get("module") if model and isinstance(model.value, dict) else None
    if module is None or not isinstance(module.value, str):
        return
    name = module.value.partition(":")[0]
    if (ws.root / name).is_file():
        digest = store.digest(ws.root / name)
        yield TrustedFile(name, digest, digest in store.trusted(ws))


def _file(ws: Workspace, name: str, digest: str, commands: Mapping[str, str]) -> TrustedFile:
    if name.startswith(store.COMMAND):
        return TrustedFile(name, digest, commands.get(name) == digest)
    path = ws.root / name
    return TrustedFile(name, digest, path.is_file() and store.digest(path) == digest)
