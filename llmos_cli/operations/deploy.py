"""deploy: serve a checkpoint over HTTP. A deployment is a run: it protects its checkpoint and is listed, followed and stopped like any other."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from llmos_cli.core import atomic, refs, storing
from llmos_cli.core.config import Resolved
from llmos_cli.core.locks import lock
from llmos_cli.core.view import Lines, Span, View
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.data.extras import require
from llmos_cli.errors import Conflict, LlmosError, UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.operations.config import note_unread
from llmos_cli.operations.ps import ADDRESS, address_of

if TYPE_CHECKING:
    from llmos_cli.core.runs import Run
    from llmos_cli.options.verbs import DeployOptions
    from llmos_cli.serve.server import Serving


@dataclass(frozen=True)
class DeployResult:
    """A deployment that answers."""

    name: str
    url: str
    run: str
    pid: int
    checkpoint: str

    def view(self) -> View:
        return Lines([[Span(self.name, "name"), f" serves {self.checkpoint[:12]} at {self.url}"]])


DETACHED = "LLMOS_DETACHED"
"""Set in the environment of a deployment that was started by `--detach`: it serves, whatever its command line says."""

Announce = Callable[[DeployResult], None]


def deploy(ws: Workspace, rev: str, resolved: Resolved, *, emit: Emit, announce: Announce) -> None:
    """Serve until told to stop; `announce` is called once the model answers. Drained by SIGTERM, it returns."""
    options, checkpoint, keys = check(ws, rev, resolved)
    _verify(ws, checkpoint, options)
    from llmos_cli.serve.server import bind, serve, url_of

    listener = bind(options.host, options.port)
    name = options.name or ws.name
    with lock(ws.dot / "locks" / f"deploy-{name}", emit=emit):
        check_free(ws, name)
        run = ws.begin("deploy", config=resolved.mapping, files=resolved.files, parents=[checkpoint.id], name=name)
    with run:
        run.listen(emit)
        result = DeployResult(name, url_of(listener), run.id, os.getpid(), checkpoint.id)
        ws.oplog.note(f"deploy {checkpoint.id[:12]} as {name} at {result.url}")
        atomic.write_text(run.path / ADDRESS, json.dumps(asdict(result)))
        serve(listener, serving_of(run, resolved, checkpoint, keys, result, announce))


def rehearse(ws: Workspace, rev: str, resolved: Resolved) -> DeployResult:
    """What `deploy` would answer: the checkpoint is hashed and the port tried; `run` is "" and `pid` 0."""
    options, checkpoint, _ = check(ws, rev, resolved)
    _verify(ws, checkpoint, options)
    from llmos_cli.serve.server import bind, url_of

    with bind(options.host, options.port) as listener:
        return DeployResult(options.name or ws.name, url_of(listener), "", 0, checkpoint.id)


def _verify(ws: Workspace, checkpoint: Checkpoint, options: DeployOptions) -> None:
    """Its bytes are those that were saved and, where that is asked for, those that somebody trusted has signed."""
    storing.verify_content(checkpoint)
    if options.require_signature is not None:
        from llmos_cli.operations.verify import required

        required(ws, checkpoint, Path(options.require_signature))


def check(ws: Workspace, rev: str, resolved: Resolved) -> tuple[DeployOptions, Checkpoint, Collection[str]]:
    """Everything that can be said no to at once."""
    options: DeployOptions = resolved.config.deploy
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve", "deployments")
    from llmos_cli.serve.guards import read_keys

    checkpoint = ws.checkpoint(rev)
    keys = read_keys(options.api_key_file)
    if not keys and not loopback(options.host):
        raise UsageError(
            f"serving on {options.host} needs an API key: others can reach it",
            hint="set deploy.api_key_file or LLMOS_API_KEYS, or serve on 127.0.0.1",
        )
    check_name(options.name)
    check_free(ws, options.name or ws.name)
    return options, checkpoint, keys


def loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name that may resolve to anything


def check_name(name: str | None) -> None:
    """A deployment's name is part of a file's name: what a ref may be called, without folders."""
    if name is not None and "/" in name:
        raise UsageError(f"{name!r} is not a name for a deployment", hint="letters, digits, `-`, `_` and `.` are fine")
    if name is not None:
        refs.check_name("deployment", name)


def check_free(ws: Workspace, name: str) -> None:
    for record in ws.runs.alive():
        if record.operation == "deploy" and record.name == name:
            raise Conflict(
                f"a deployment called {name} is running (process {record.pid})",
                hint=f"`llmos stop {name}` ends it, or give this one another --name",
            )


def serving_of(
    run: Run,
    resolved: Resolved,
    checkpoint: Checkpoint,
    keys: Collection[str],
    result: DeployResult,
    announce: Announce,
) -> Serving:
    from llmos_cli.serve.gateway import Gateway, Limits
    from llmos_cli.serve.link import Link, Load
    from llmos_cli.serve.server import Serving

    options: DeployOptions = resolved.config.deploy
    limits = Limits(options.slots, options.queue, options.max_request_bytes, options.max_tokens)
    load = Load(
        str(checkpoint.path),
        options.slots,
        options.context,
        options.warm,
        options.precision,
        options.kernels,
        options.head,
        options.kv_cache,
    )

    def say(sentence: str, level: str) -> None:
        run.emit(Note(sentence, level=level))

    def gateway(link: Link) -> Gateway:
        return Gateway(link, result.name, checkpoint.id, checkpoint.path, limits)

    def ready() -> None:
        note_unread(resolved, lambda message: say(message, "warning"))
        say(f"ready at {result.url}", "info")
        announce(result)

    return Serving(load, keys, options.drain_seconds, gateway, ready, say)


def detach(ws: Workspace, rev: str, resolved: Resolved, arguments: Sequence[str], *, timeout: float) -> DeployResult:
    """Run the command line `arguments` in a process of its own, where DETACHED is set, and return once it answers."""
    check(ws, rev, resolved)
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "llmos_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=Path.cwd(),
            env={**os.environ, DETACHED: "1"},
        )
        try:
            return wait_ready(ws, child, output, timeout)
        except BaseException:  # it is in a session of its own: Ctrl-C reaches us alone
            child.terminate()
            child.wait()
            raise


def wait_ready(ws: Workspace, child: subprocess.Popen[bytes], output: IO[str], timeout: float) -> DeployResult:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise LlmosError(
                f"the deployment ended before it was ready: {last_words(output)}",
                hint="without --detach it says everything here",
            )
        if (found := answering(ws, child.pid)) is not None:
            return found
        time.sleep(0.1)
    raise LlmosError(
        f"the deployment was not ready within {timeout:g} s and was stopped", hint="give it longer with --ready-timeout"
    )


def answering(ws: Workspace, pid: int) -> DeployResult | None:
    """The deployment of process `pid`, once it is ready."""
    record = next((each for each in ws.runs.alive() if each.pid == pid), None)
    address = address_of(record) if record else None
    return DeployResult(**address) if address and ready(address["url"]) else None


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def last_words(output: IO[str]) -> str:
    """What the child said last: its error, where it could say one."""
    output.seek(0)
    lines = [line.strip() for line in output.read().splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]
