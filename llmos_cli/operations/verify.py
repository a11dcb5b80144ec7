"""verify: a checkpoint is what somebody trusted signed: his signature, every byte, and the id that stands for them."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmos_cli.core import manifest, signatures, storing
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.view import Group, Lines, Table, View, size
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import Untrusted, UsageError
from llmos_cli.events import Note
from llmos_cli.operations import certificates
from llmos_cli.operations.sign import read_file, require_signing

if TYPE_CHECKING:
    from model_signing import verifying


@dataclass(frozen=True)
class VerifyResult:
    """What is signed: the checkpoint by its `id` and every file of its `tree`. `trusted`: the key or certificate that was
    named; `signer`: the key's SHA-256, or whose certificate it is, which holds from and until the days of `holds`."""

    id: str
    tree: Mapping[str, FileEntry]
    method: Literal["key", "certificate"]
    signer: str
    trusted: str
    holds: tuple[str, str] | None = None

    def view(self) -> View:
        total = size(sum(entry.size for entry in self.tree.values()))
        return Group(
            [
                Lines(
                    [
                        f"checkpoint {self.id}",
                        f"signed by  {self.method} {self.signer}, which {self.trusted} vouches for",
                        *([f"it holds   {self.holds[0]} to {self.holds[1]}"] if self.holds else []),
                        f"signed     {len(self.tree)} files, {total}, and the manifest that lists them",
                    ]
                ),
                Table(
                    ["file", "size", "SHA-256"],
                    [[name, size(entry.size), entry.sha256[:16]] for name, entry in self.tree.items()],
                    align="lrl",
                ),
            ]
        )


def verify(ws: Workspace, rev: str = "HEAD", *, key: Path, signature: Path | None = None) -> VerifyResult:
    """`key`: a public key, or the certificate that must be above the signer's. `signature`: this one, not the workspace's."""
    checkpoint = ws.checkpoint(rev)
    if signature is None:
        return required(ws, checkpoint, key)
    return _checked(ws, checkpoint, read_file(signature, "signature").decode("utf-8", errors="replace"), key)


def required(ws: Workspace, checkpoint: Checkpoint, key: Path) -> VerifyResult:
    """Untrusted (exit 5) unless the workspace has a signature of it that `key` vouches for."""
    text = signatures.read(ws.dot, checkpoint.id)
    if text is None:
        raise Untrusted(
            f"checkpoint {checkpoint.id[:12]} has no signature",
            hint=f"`llmos sign {checkpoint.id[:12]} --key FILE` signs it; signatures come along with `llmos fetch`",
        )
    return _checked(ws, checkpoint, text, key)


def _checked(ws: Workspace, checkpoint: Checkpoint, text: str, key: Path) -> VerifyResult:
    require_signing()
    bundle = signatures.parse(text, f"the signature of {checkpoint.id[:12]}")
    _must_be_of(checkpoint, bundle)
    _check_signature(checkpoint, bundle, key)
    found = checkpoint.manifest
    if manifest.NAME not in bundle.files or manifest.identify(found.tree, found.made) != checkpoint.id:
        raise Untrusted(
            f"the signature does not say that this is {checkpoint.id[:12]}: its manifest is not signed or not its own",
            hint="sign the whole directory, as `llmos sign` does",
        )
    if not found.tree.keys() <= bundle.files.keys():  # model_signing leaves git's own files out: the manifest has them
        storing.verify_content(checkpoint)
    if bundle.method == "key":
        return VerifyResult(checkpoint.id, found.tree, "key", bundle.key[:16], str(key))
    signer = certificates.signers(bundle)
    if fault := signer.fault():
        ws.emit(
            Note(
                f"the certificate of {signer.subject} {fault}; when {checkpoint.id[:12]} was signed nobody can tell",
                "warning",
            )
        )
    return VerifyResult(
        checkpoint.id, found.tree, "certificate", signer.subject, str(key), (signer.since[:10], signer.until[:10])
    )


def _must_be_of(checkpoint: Checkpoint, bundle: signatures.Bundle) -> None:
    """As far as it says itself: one that says so wrongly is found out by the key."""
    if manifest.NAME in bundle.files and not bundle.is_of((checkpoint.path / manifest.NAME).read_bytes()):
        raise Untrusted(
            f"the signature of {checkpoint.id[:12]} is that of another checkpoint, or its manifest was changed",
            hint="`llmos fsck` tells whether its manifest is what was saved; `llmos fetch` brings signatures",
        )


def _check_signature(checkpoint: Checkpoint, bundle: signatures.Bundle, key: Path) -> None:
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying
    from OpenSSL.crypto import X509StoreContextError

    config = _use(verifying.Config(), checkpoint, bundle, key)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".sig") as file:
        file.write(bundle.text)
        file.flush()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints warnings of old formats among our results
                config.verify(checkpoint.path, Path(file.name))
        except (
            InvalidSignature,
            X509StoreContextError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
        ) as error:
            raise Untrusted(
                f"checkpoint {checkpoint.id[:12]} is not what was signed with {key}: {_told(error)}",
                hint="`llmos fsck` tells whether its bytes are those that were saved; ask who signed it",
            ) from error


def _use(config: verifying.Config, checkpoint: Checkpoint, bundle: signatures.Bundle, key: Path) -> verifying.Config:
    """The verifier of what `key` is; the reason in words where it is not what the signature was made with."""
    text = read_file(key, "key")
    if b"PRIVATE KEY" in text:
        raise UsageError(
            f"{key} is a private key, and verifying takes the public one",
            hint=f"`openssl pkey -in {key} -pubout -out public.pem` writes it",
        )
    kind = "certificate" if b"BEGIN CERTIFICATE" in text else "key"
    if kind != bundle.method:
        raise Untrusted(
            f"checkpoint {checkpoint.id[:12]} was signed with a {bundle.method}, and {key} is a {kind}",
            hint=f"name the {bundle.method} of whom you trust, or sign it again",
        )
    try:
        if kind == "certificate":
            return config.use_certificate_verifier(certificate_chain=[key])
        return config.use_elliptic_key_verifier(public_key=key)
    except (ValueError, AttributeError):  # of another kind of key, which has no curve
        raise UsageError(
            f"{key} is neither a public key nor a certificate that could have signed a model",
            hint="a PEM file: a key of the curves P-256, P-384 or P-521, or a certificate",
        ) from None


def _told(error: Exception) -> str:
    from cryptography.exceptions import InvalidSignature

    if isinstance(error, InvalidSignature):
        return "the signature itself is wrong"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, IndexError):
        return "something that it must hold is missing"
    if type(error).__module__.startswith("pydantic"):
        return "it is no bundle that model_signing knows"
    return " ".join(str(error).replace("Signature mismatch: ", "").strip("[]\"'").split())[:300]
