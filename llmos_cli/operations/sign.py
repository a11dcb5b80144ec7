"""sign: say of a checkpoint, with a private key, that it is what one made: an OpenSSF model-signing bundle over its directory.

The bundle is kept beside the workspace's refs, not in the directory, and is what the `model_signing` command makes and verifies.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmos_cli.core import manifest, signatures, storing
from llmos_cli.core.operation import Change
from llmos_cli.core.view import Lines, View, short
from llmos_cli.core.workspace import DOT, Checkpoint, Workspace
from llmos_cli.data.extras import require
from llmos_cli.errors import NotFound, Untrusted, UsageError
from llmos_cli.operations import certificates

if TYPE_CHECKING:
    from model_signing import signing

PASSWORD = "LLMOS_SIGNING_PASSWORD"
"""Of an encrypted private key. In the environment: a command line can be read by others, and is logged."""
_MAKE = "`openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes one"


@dataclass(frozen=True)
class SignResult:
    """`files` that are signed, `replaced`: there was a signature before."""

    checkpoint: str
    signature: str
    method: Literal["key", "certificate"]
    files: int
    replaced: bool

    def view(self) -> View:
        again = ", in place of the signature it had" if self.replaced else ""
        return Lines(
            [
                f"{short(self.checkpoint)} is signed with a {self.method}{again}: {self.files} files",
                f"the signature is {self.signature}",
            ]
        )


def sign(
    ws: Workspace,
    rev: str = "HEAD",
    *,
    key: Path | None = None,
    certificate: Path | None = None,
    chain: Sequence[Path] = (),
    bundle: Path | None = None,
) -> SignResult:
    """With the private `key`, and where others know a certificate of it, with that and the `chain` above it. `bundle`: one that
    `model_signing` made of the directory (a hardware key, say) is kept instead."""
    checkpoint = ws.checkpoint(rev)
    storing.verify_content(checkpoint)
    if bundle is not None:
        text = _read_bundle(bundle)
    elif key is None:
        raise UsageError("sign with which key?", hint=f"--key FILE; {_MAKE}")
    else:
        text = _made(checkpoint, key, certificate, chain)
    return _keep(ws, checkpoint, signatures.parse(text, "what was made" if bundle is None else str(bundle)))


@dataclass(frozen=True)
class UnsignResult:
    checkpoint: str

    def view(self) -> View:
        return f"the signature of {short(self.checkpoint)} is gone: `llmos undo` brings it back, and a fetch one that a remote has"


def unsign(ws: Workspace, rev: str = "HEAD") -> UnsignResult:
    """Take a signature away, for another to come in its place."""
    checkpoint = ws.resolve(rev)
    before = signatures.read(ws.dot, checkpoint)
    if before is None:
        raise NotFound(f"{short(checkpoint)} is not signed", hint="`llmos sign` signs it")
    path = signatures.path(ws.dot, checkpoint).relative_to(ws.root).as_posix()
    ws.oplog.apply(f"sign --remove {short(checkpoint)}", [Change(path, before, None)], emit=ws.emit)
    return UnsignResult(checkpoint)


def _made(checkpoint: Checkpoint, key: Path, certificate: Path | None, chain: Sequence[Path]) -> str:
    require_signing()
    from model_signing import signing

    _check_key(key, with_certificate=certificate is not None)
    for each in (*([certificate] if certificate else []), *chain):
        certificates.require_valid(each, read_file(each, "certificate"))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "model.sig")
        try:
            _signer(signing.Config(), key, certificate, chain).sign(checkpoint.path, target)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{checkpoint.id[:12]} cannot be signed with {key}: {error}",
                hint="keys are of the elliptic curves P-256, P-384 or P-521, and a certificate is that of its key",
            ) from error
        text = target.read_text(encoding="utf-8")
        return text if certificate is None or chain else _with_one_certificate(text)


def require_signing() -> None:
    for module in ("model_signing", "OpenSSL"):
        require(module, "sign", "signatures")


def _signer(config: signing.Config, key: Path, certificate: Path | None, chain: Sequence[Path]) -> signing.Config:
    if certificate is None:
        return config.use_elliptic_key_signer(private_key=key, password=_password())  # type: ignore[arg-type]
    # One that the root itself issued has nothing between. model_signing reads no empty chain, but takes the certificate twice.
    return config.use_certificate_signer(
        private_key=key, signing_certificate=certificate, certificate_chain=chain or [certificate]
    )


def _with_one_certificate(bundle: str) -> str:
    """The signer's, which is first. They are beside what is signed, not of it."""
    value = json.loads(bundle)
    del value["verificationMaterial"]["x509CertificateChain"]["certificates"][1:]
    return json.dumps(value)


def _password() -> bytes | None:
    given = os.environ.get(PASSWORD)
    return given.encode() if given else None


def _check_key(path: Path, *, with_certificate: bool) -> None:
    """Whatever is wrong with it is said in a sentence that holds nothing of the key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = read_file(path, "private key")
    if with_certificate and b"ENCRYPTED" in text:
        raise UsageError(f"{path} is encrypted, and model_signing reads no such key beside a certificate", hint=_MAKE)
    try:
        key = load_pem_private_key(text, _password() if b"ENCRYPTED" in text else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if b"ENCRYPTED" in text:
            raise Untrusted(
                f"{path} is encrypted, and {PASSWORD} is not its password", hint=f"set {PASSWORD}"
            ) from error
        raise UsageError(f"{path} is not a private key in PEM", hint=_MAKE) from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise UsageError(f"{path} is not the key of an elliptic curve, and model_signing takes no other", hint=_MAKE)


def read_file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"the {what} {path} cannot be read: {error.strerror}", hint="is that its place?") from None


def _read_bundle(path: Path) -> str:
    return read_file(path, "signature").decode("utf-8", errors="replace")


def _keep(ws: Workspace, checkpoint: Checkpoint, bundle: signatures.Bundle) -> SignResult:
    """As one operation, so that `undo` takes it back."""
    if not bundle.is_of((checkpoint.path / manifest.NAME).read_bytes()):
        raise Untrusted(
            f"the signature is not of {checkpoint.id[:12]}: it does not name its {manifest.NAME}",
            hint=f"sign the whole directory: {checkpoint.path}",
        )
    before = signatures.read(ws.dot, checkpoint.id)
    path = signatures.path(ws.dot, checkpoint.id).relative_to(ws.root)
    assert path.parts[0] == DOT
    if before != bundle.text:
        ws.oplog.apply(f"sign {checkpoint.id[:12]}", [Change(path.as_posix(), before, bundle.text)], emit=ws.emit)
    return SignResult(checkpoint.id, path.as_posix(), bundle.method, len(bundle.files), before is not None)
