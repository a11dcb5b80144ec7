"""Certificates beside signatures: whose they are, and from when until when they hold.

A bundle says nowhere when it was made, so whether a certificate held then cannot be known: `model_signing` asks none, and neither is a
signature refused here for it. But it is said, and nothing is signed with a certificate that does not hold today.
"""

from __future__ import annotations

import base64
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core.signatures import Bundle
from llmos_cli.errors import UsageError

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True)
class Certificate:
    """`since`, `until`: ISO 8601, UTC."""

    subject: str
    since: str
    until: str

    def fault(self) -> str:
        """Why it does not hold today; "" where it does."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if now > self.until:
            return f"expired on {self.until[:10]}"
        return f"does not hold before {self.since[:10]}" if now < self.since else ""


def signers(bundle: Bundle) -> Certificate:
    """Of whoever signed; the first of its chain."""
    from cryptography import x509

    chain = json.loads(bundle.text)["verificationMaterial"]["x509CertificateChain"]["certificates"]
    return _of(x509.load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"])))


def require_valid(path: Path, text: bytes) -> None:
    """UsageError where the text of a file is no certificate, or one that does not hold today."""
    from cryptography import x509

    try:
        certificate = _of(x509.load_pem_x509_certificate(text))
    except ValueError:
        raise UsageError(
            f"{path} is not a certificate in PEM", hint="it begins with -----BEGIN CERTIFICATE-----"
        ) from None
    if fault := certificate.fault():
        raise UsageError(f"{path} {fault}", hint="sign with one that holds: nobody could tell when this was signed")


def _of(certificate: x509.Certificate) -> Certificate:
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    name = certificate.subject.rfc4514_string()
    return Certificate(name, since.isoformat(timespec="seconds"), until.isoformat(timespec="seconds"))
