"""URLs and paths that cannot be: the same sentence wherever one stands, exit 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos_cli.core import urls
from llmos_cli.core.workspace import Workspace
from llmos_cli.data.places import filesystem, locate
from llmos_cli.errors import UsageError
from llmos_cli.models import upstream
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.backup import backup
from llmos_cli.operations.clone import clone
from llmos_cli.operations.pipeline.cache import Cache
from llmos_cli.operations.push import push
from llmos_cli.operations.restore import restore
from tests.core.conftest import Commit

NO_HOST = ("sftp://h:abc/x", "sftp://host:99999/x", "s3://[::1", "sftp://me@[::1/x", "gs://[zz]/x", "sftp://a b/x")
NO_USER = ("~nobody-of-that-name/x", "file://~nobody-of-that-name/x")
NOTHING = ("", "  ", "\t", "a\nb", "sftp://h/a\nb", "a\0b")
SAYS = {
    **dict.fromkeys(NO_HOST, "its host or port cannot be read"),
    **dict.fromkeys(NO_USER, "home folder of a user whom this machine does not know"),
    **dict.fromkeys(NOTHING, "is no folder and no URL"),
}


@pytest.mark.parametrize("url", SAYS)
def test_no_remote_lies_there(ws: Workspace, tmp_path: Path, url: str) -> None:
    for use in (
        lambda: remotes.add(ws, "far", url),
        lambda: clone(url, tmp_path / "there"),
        lambda: restore(url, tmp_path / "there"),
    ):
        with pytest.raises(UsageError, match=SAYS[url]):
            use()
    assert not (ws.root / "llmos.yaml").exists() or "far" not in (ws.root / "llmos.yaml").read_text()
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("url", [*NO_HOST, *NO_USER, "  "])
def test_nor_where_the_settings_name_it(ws: Workspace, commit: Commit, url: str) -> None:
    commit(a="1")
    (ws.root / "llmos.yaml").write_text(f"format: 1\nremotes: {{origin: {{url: '{url}'}}}}\n")
    for use in (lambda: push(ws), lambda: backup(ws), lambda: Cache(ws, "origin", []).has("0" * 64)):
        with pytest.raises(UsageError, match=SAYS[url]):
            use()
    assert remotes.remove(ws, "origin").remote.url == url


@pytest.mark.parametrize("url", [*NO_HOST, *NO_USER])
def test_nor_a_cache_nor_data_nor_a_key(ws: Workspace, url: str) -> None:
    with pytest.raises(UsageError, match=SAYS[url]):
        Cache(ws, url, []).has("0" * 64)
    with pytest.raises(UsageError, match=SAYS[NO_USER[0]]):
        remotes.add(ws, "far", "/nowhere", key_file=NO_USER[0])
    with pytest.raises(UsageError, match=SAYS[NO_USER[0]]):
        locate(NO_USER[0], format=None, root=ws.root)
    with pytest.raises(UsageError, match=SAYS[NO_USER[0]]):
        upstream.find(NO_USER[0])


def test_of_data_the_url_is_told_and_no_package(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="its host or port cannot be read"):
        filesystem("sftp://h:abc/x.csv")


def test_what_can_be() -> None:
    parts = urls.split("sftp://me@[::1]:22/~/a b")
    assert (parts.username, parts.hostname, parts.port, parts.path) == ("me", "::1", 22, "/~/a b")
    assert urls.split("/mnt/a").path == "/mnt/a" and urls.split("//[x/y").path == "//[x/y"
    assert urls.local("file:///mnt/x") == Path("/mnt/x") and urls.path("~") == Path.home()
