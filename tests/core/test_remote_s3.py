"""Remotes on S3: a real client against moto's server, begun by the tests on loopback."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError

from llmos_cli.core.remote import layout
from llmos_cli.core.remote.store import Content
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError, NotFound, UsageError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck_remote import fsck_remote
from llmos_cli.operations.pull import pull
from llmos_cli.operations.push import push
from llmos_cli.transports import s3
from tests.core.conftest import Commit
from tests.core.places import contest, created_once, there_and_back

SERVER = """
import sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL_S3": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()
    boto3.client("s3").create_bucket(Bucket="models")
    return "s3://models/team/demo"


def test_there_and_back(ws: Workspace, bucket: str, tmp_path: Path) -> None:
    there_and_back(ws, bucket, tmp_path)


def test_an_empty_file_is_one(ws: Workspace, bucket: str, commit: Commit) -> None:
    """Asked for the bytes from the first one on, S3 says that there is none."""
    commit(a="", b="content")
    remotes.add(ws, "origin", bucket)
    push(ws)
    assert fsck_remote(ws, "origin").problems == ()
    there = remotes.opened(ws, remotes.named(ws, None))
    nothing = layout.object_name(hashlib.sha256(b"").hexdigest())
    assert there.store.size(nothing) == 0 and list(there.store.chunks(nothing, 0)) == []


def test_of_many_who_push_at_once_one_wins_and_the_others_know(
    ws: Workspace, commit: Commit, bucket: str, tmp_path: Path
) -> None:
    remotes.add(ws, "origin", bucket)
    commit(a="1")
    push(ws)
    contest(ws, bucket, tmp_path)


def test_a_ref_is_created_once(bucket: str, tmp_path: Path) -> None:
    store = s3.open_store(bucket, tmp_path, "me")
    created_once(store)


def lose_an_answer(store: Any, operation: str = "PutObject", key: str = "refs/") -> list[str]:
    """The way breaks down once, after the service has done what it was asked to."""
    lost: list[str] = []

    def send(request: Any, **_: Any) -> None:
        if key in request.url and not lost:
            lost.append(request.url)
            store._client._endpoint.http_session.send(request)
            raise ConnectionClosedError(endpoint_url=request.url)

    store._client.meta.events.register(f"before-send.s3.{operation}", send)
    return lost


def test_who_hears_no_answer_is_not_in_its_own_way(
    ws: Workspace, commit: Commit, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remotes.add(ws, "origin", bucket)
    commit(a="1")
    push(ws)
    opened, lost = s3.open_store, list[list[str]]()

    def open_store(*given: Any) -> s3.S3Store:
        store = opened(*given)
        lost.append(lose_an_answer(store, key="00000002"))
        return store

    monkeypatch.setattr(s3, "open_store", open_store)
    made = commit(a="2")
    told = push(ws)
    assert any(lost) and [ref.checkpoint for ref in told.refs] == [made.id]
    monkeypatch.setattr(s3, "open_store", opened)
    clone(bucket, tmp_path / "clone")
    assert Workspace.find(tmp_path / "clone").resolve("main") == made.id


def test_who_comes_second_and_hears_no_answer_is_second(bucket: str, tmp_path: Path) -> None:
    store = s3.open_store(bucket, tmp_path, "me")
    assert store.create("refs/x/00000001", b"one")
    lost = lose_an_answer(store)
    assert not store.create("refs/x/00000001", b"two") and lost
    assert store.read("refs/x/00000001", 100) == b"one"


def deaf_to_conditions(store: Any) -> None:
    def send(request: Any, **_: Any) -> None:
        del request.headers["If-None-Match"]

    store._client.meta.events.register("before-sign.s3.PutObject", send)


def test_a_service_that_heeds_no_condition_moves_a_ref_by_force_only(
    ws: Workspace, commit: Commit, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = s3.open_store

    def open_store(*given: Any) -> s3.S3Store:
        deaf_to_conditions(store := opened(*given))
        return store

    monkeypatch.setattr(s3, "open_store", open_store)
    remotes.add(ws, "origin", bucket)
    made = commit(a="1")
    with pytest.raises(LlmosError, match="main was not moved: this service heeds no `If-None-Match`"):
        push(ws)
    push(ws, force=True)
    clone(bucket, tmp_path / "clone")
    assert Workspace.find(tmp_path / "clone").resolve("main") == made.id
    store = open_store(bucket, tmp_path, "me")
    assert not store.create(layout.ref_name("refs/heads/main", 1), b"other"), "what is there stays"


def test_a_large_upload_goes_on_where_it_stopped(bucket: str, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 40 + b"the end"
    store = s3.open_store(bucket, tmp_path, "me")
    sent: list[int] = []
    store._client.meta.events.register(
        "before-call.s3.UploadPart", lambda params, **_: sent.append(params["body"].getbuffer().nbytes)
    )

    def heard(count: int) -> None:
        if sum(sent) > 20 << 20:
            raise KeyboardInterrupt

    content = Content(len(data), lambda: iter(data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)))
    with pytest.raises(KeyboardInterrupt):
        store.put("objects/x", content, heard)
    assert store.size("objects/x") is None
    store.put("objects/x", content, lambda _: None)
    assert sent == [16 << 20, 16 << 20, (8 << 20) + 7]
    arrived = b"".join(store.chunks("objects/x", 0))
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(data).digest()
    assert b"".join(store.chunks("objects/x", len(data) - 3)) == b"end"
    store.put("objects/x", content, lambda _: None)


def test_what_goes_wrong_is_a_sentence(
    ws: Workspace, commit: Commit, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(a="1")
    with pytest.raises(UsageError, match="names no bucket"):
        remotes.add(ws, "bad", "s3:///x")
    remotes.add(ws, "missing", "s3://nowhere/x")
    with pytest.raises(NotFound, match="there is no bucket for s3://nowhere/x"):
        push(ws, remote="missing")
    remotes.add(ws, "origin", bucket)
    with pytest.raises(NotFound, match="nothing was ever pushed to s3://models/team/demo"):
        pull(ws, "origin")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(LlmosError, match="cannot reach s3://models/team/demo"):
        push(ws, remote="origin")
    assert time.monotonic() - began < 30
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UsageError, match="no credentials for s3://models/team/demo"):
        push(ws, remote="origin")


def test_an_endpoint_is_a_whole_url(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio.example:9000")
    with pytest.raises(UsageError, match=r"cannot be asked: Invalid endpoint: minio\.example:9000"):
        s3.open_store(bucket, tmp_path, "me")


class Elsewhere(BaseHTTPRequestHandler):
    """Answers 301 to everything."""

    def answer(self) -> None:
        self.send_response(301)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


def test_a_service_that_only_redirects_cannot_be_reached(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as service:
        threading.Thread(target=service.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{service.server_port}")
        store = s3.open_store(bucket, tmp_path, "me")
        try:
            for ask in (lambda: store.read("x", 10), lambda: store.size("x"), lambda: store.names("")):
                with pytest.raises(LlmosError, match="cannot reach s3://models/team/demo"):
                    ask()
        finally:
            service.shutdown()
