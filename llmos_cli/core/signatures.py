"""Signatures: `.llmos/signatures/<id>.sig`, each an OpenSSF model-signing bundle over a checkpoint's directory.

A bundle is a DSSE envelope around an in-toto statement that lists every file with its hash. What is read here is what it says;
that it is true is found out by `operations/verify.py`, with the key of somebody who is trusted.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmos_cli.core import lines, manifest
from llmos_cli.core.listing import files, read_text
from llmos_cli.core.operation import parse as read_operation
from llmos_cli.core.refs import ID
from llmos_cli.errors import UNREADABLE, Corrupt

FOLDER = "signatures"
LIMIT = 16 << 20
"""Bytes: a model of 50,000 files has a signature of 13 MB."""
_SUFFIX = ".sig"
_SIGNED = f".llmos/{FOLDER}/".encode()


@dataclass(frozen=True)
class Bundle:
    """What it says of itself: `method` by which it was made, `key` the SHA-256 of the public key's PEM (no certificate has
    one), `files` name -> SHA-256."""

    text: str
    method: Literal["key", "certificate"]
    key: str
    files: Mapping[str, str]

    def is_of(self, text: bytes) -> bool:
        """Whether the manifest that it names, as far as it says itself, is this one."""
        return self.files.get(manifest.NAME) == hashlib.sha256(text).hexdigest()


def path(dot: Path, checkpoint: str) -> Path:
    return dot / FOLDER / f"{checkpoint}{_SUFFIX}"


def read(dot: Path, checkpoint: str) -> str | None:
    """The text of a checkpoint's signature; None where it has none."""
    try:
        return read_text(path(dot, checkpoint))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise Corrupt(f"the signature of {checkpoint[:12]} is not text", hint=_AGAIN) from None


def signed(dot: Path) -> Iterator[str]:
    """Ids of all checkpoints that have a signature, whether they are still there or not."""
    folder = dot / FOLDER
    for name in files(folder):
        if name.endswith(_SUFFIX) and ID.fullmatch(checkpoint := name.removesuffix(_SUFFIX)):
            yield checkpoint


def logged(log: Path) -> dict[str, str | None]:
    """Checkpoint -> the text of the signature that the log of operations left it with, None where it took it away."""
    texts: dict[str, str | None] = {}
    for line in lines.read(log):
        if (_SIGNED in line or b'"collects"' in line) and (operation := read_operation(line)) is not None:
            texts |= {change.signed: change.after for change in operation.changes if change.signed}
            texts |= dict.fromkeys(operation.collects)
    return texts


def parse(text: str, what: str) -> Bundle:
    """Corrupt where it is no bundle that a key or a certificate made."""
    try:
        value = json.loads(text)
        material, envelope = value["verificationMaterial"], value["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"], validate=True))
        resources = statement["predicate"]["resources"]
        files = {str(each["name"]): str(each["digest"]) for each in resources if each["algorithm"] == "sha256"}
        by_key = "publicKey" in material
        if not (by_key or material["x509CertificateChain"]["certificates"]):
            raise ValueError("it has neither a key nor a certificate")
        key = str(material["publicKey"]["hint"]) if by_key else ""
    except UNREADABLE as error:
        raise Corrupt(f"{what} is no signature of a model: {_told(error)}", hint=_AGAIN) from error
    return Bundle(text, "key" if by_key else "certificate", key, files)


_AGAIN = "`llmos sign` makes a new one; `llmos fetch` brings that of a remote once this one is gone"


def _told(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "what it signs is not text"
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)[:80]
