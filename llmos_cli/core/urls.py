"""Where something lies, as users write it: a URL, or a path. Read in one place, so that what cannot be read is one sentence everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from llmos_cli.errors import UsageError

_LOCAL = "file://"
_UNSEEN = re.compile(r"[\x00-\x1f\x7f]")
_BLANK = re.compile(r"\s")


def split(url: str) -> SplitResult:
    """Its parts, those of a path but for its path empty; UsageError for what can be neither. Python's own words for that are not passed on:
    they quote half a password where it took the other half for a port."""
    if not url.strip() or _UNSEEN.search(url):
        raise UsageError(
            f"{url!r} is no folder and no URL", hint="a folder, `sftp://host/folder`, `s3://bucket/folder`"
        )
    if "://" not in url:
        return SplitResult("", "", url, "", "")
    try:
        parts = urlsplit(url)
        _ = parts.port  # read when it is asked for
    except ValueError:
        parts = None
    if parts is None or _BLANK.search(parts.netloc):
        raise UsageError(
            f"{url} is no URL: its host or port cannot be read",
            hint="`sftp://user@host:22/folder`; an IPv6 address stands in brackets, a sign such as `/` in a name as `%2F`",
        )
    return parts


def local(url: str) -> Path:
    """The path of a URL or text that names a place of this machine."""
    return path(url.removeprefix(_LOCAL))


def path(text: str | Path) -> Path:
    """With `~` and `~user` spelt out; UsageError where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{text} is in the home folder of a user whom this machine does not know",
            hint="`./~name` is a file that is called so",
        ) from None
