"""Signatures: those of llmos hold for the `model_signing` command and the other way round, and nothing else holds."""

from __future__ import annotations

import base64
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from llmos_cli.core import signatures
from llmos_cli.core.remote import layout
from llmos_cli.core.remote.vouching import Vouching
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.push import push
from llmos_cli.operations.sign import PASSWORD, sign
from tests.conftest import Llmos
from tests.core.conftest import commit_to

MODEL_SIGNING = (sys.executable, "-m", "model_signing")
"""The command as its own distribution installs it."""


def pem(key: ec.EllipticCurvePrivateKey, password: str = "") -> bytes:
    sealed = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed)


DAYS = {"past": (-0.9, -0.1), "future": (0.1, 0.9)}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder: key.pem and public.pem, those of somebody else, a certificate chain root > middle > me, and root > alone; also
    root > past, which holds no longer, and root > future."""
    folder = tmp_path / "keys"
    folder.mkdir()
    made = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("key", "other", "root", "middle")}
    for name in ("key", "other"):
        (folder / f"{name}.pem").write_bytes(pem(made[name]))
        public = made[name].public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / f"{name}.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    for name, key, issuer in (("root", "root", "root"), ("middle", "middle", "root"), ("me", "key", "middle"), ("alone", "key", "root"), ("past", "key", "root"), ("future", "key", "root"), ("stranger", "other", "other")):  # fmt: skip
        authority, days = name in made or name == "stranger", DAYS.get(name, (-1, 1))
        certificate = issued(name, made[key], issuer, made[issuer], authority=authority, days=days)
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder


def issued(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    by: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    days: tuple[float, float] = (-1, 1),
) -> x509.Certificate:
    called = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(True, False, False, False, False, authority, authority, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(called[0])
        .issuer_name(called[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(by, hashes.SHA256())
    )


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    made = Workspace.create(tmp_path / "w")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def model(ws: Workspace) -> Checkpoint:
    return commit_to(ws, {"a.txt": "weights", "b.txt": "more", ".gitattributes": "* -text"})


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MODEL_SIGNING, *map(str, words)], capture_output=True, text=True)


def kept(ws: Workspace, model: Checkpoint) -> Path:
    return ws.dot / "signatures" / f"{model.id}.sig"


def damage(path: Path, text: str) -> None:
    """Another byte, the same size and the same time."""
    status = path.stat()
    path.chmod(0o644)
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_llmos_signs_the_command_verifies(ws, model, keys, llmos: Llmos) -> None:
    ran = llmos("sign", "--key", keys / "key.pem")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1] == f"the signature is .llmos/signatures/{model.id}.sig"
    words = ("verify", "key", model.path, "--signature", kept(ws, model), "--public_key")
    assert command(*words, keys / "key.pub").returncode == 0
    assert command(*words, keys / "other.pub").returncode == 1
    told = llmos("verify", "--key", keys / "key.pub", "--json").json
    assert told["id"] == model.id and set(told["tree"]) == {"a.txt", "b.txt", ".gitattributes"}
    assert fsck(ws).problems == ()


def test_what_the_command_signs_llmos_verifies(ws, model, keys, tmp_path, llmos: Llmos) -> None:
    made = tmp_path / "model.sig"
    assert command("sign", "key", model.path, "--private_key", keys / "key.pem", "--signature", made).returncode == 0
    assert llmos("verify", "--key", keys / "key.pub", "--signature", made).code == 0
    assert llmos("verify", "--key", keys / "key.pub").code == 5
    assert llmos("sign", "--bundle", made).code == 0
    assert llmos("verify", "--key", keys / "key.pub").code == 0
    commit_to(ws, {"a.txt": "another"})
    refused = llmos("sign", "--bundle", made)
    assert (refused.code, "is not of" in refused.err) == (5, True)


def test_a_certificate_is_vouched_for_by_who_issued_it(ws, model, keys, tmp_path, llmos: Llmos) -> None:
    given = ("--key", keys / "key.pem", "--certificate", keys / "me.crt", "--chain", keys / "middle.crt")
    assert llmos("sign", *given).code == 0
    words = ("verify", "certificate", model.path, "--signature", kept(ws, model), "--certificate_chain")
    assert command(*words, keys / "root.crt").returncode == 0
    ran = llmos("verify", "--key", keys / "root.crt", "--json")
    assert (ran.code, ran.json["method"], ran.json["signer"]) == (0, "certificate", "CN=me")
    for wrong in ("stranger.crt", "key.pub"):
        assert llmos("verify", "--key", keys / wrong).code == 5
    made = tmp_path / "model.sig"
    theirs = command(
        *("sign", "certificate", model.path, "--signature", made, "--private_key", keys / "key.pem"),
        *("--signing_certificate", keys / "me.crt", "--certificate_chain", keys / "middle.crt"),
    )
    assert theirs.returncode == 0, theirs.stderr
    assert llmos("verify", "--key", keys / "root.crt", "--signature", made).code == 0
    mixed = llmos("sign", "--key", keys / "other.pem", "--certificate", keys / "me.crt")
    assert (mixed.code, "does not match" in mixed.err) == (2, True)


@pytest.mark.parametrize(("name", "fault"), [("past", "expired on "), ("future", "does not hold before ")])
def test_nothing_is_signed_with_a_certificate_that_does_not_hold(
    name: str, fault: str, ws, model, keys, tmp_path, llmos
) -> None:
    """One that did when it was signed with, as may be, is taken, and said: `model_signing` takes it too."""
    ran = llmos("sign", "--key", keys / "key.pem", "--certificate", keys / f"{name}.crt")
    assert (ran.code, f"{name}.crt {fault}" in ran.err) == (2, True), ran.err
    made = tmp_path / "model.sig"
    words = ("--private_key", keys / "key.pem", "--signing_certificate", keys / f"{name}.crt")
    theirs = command("sign", "certificate", model.path, "--signature", made, *words, "--certificate_chain", keys / f"{name}.crt")  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr
    assert llmos("sign", "--bundle", made).code == 0
    ran = llmos("verify", "--key", keys / "root.crt")
    assert (ran.code, f"warning: the certificate of CN={name} {fault}" in ran.err) == (0, True), ran.err
    assert "it holds   " in ran.out


def test_a_certificate_that_the_root_issued_has_no_chain(ws, model, keys, llmos: Llmos) -> None:
    given = ("--key", keys / "key.pem", "--certificate", keys / "alone.crt")
    ran = llmos("sign", *given)
    assert (ran.code, ran.err) == (0, ""), ran.err
    signature = kept(ws, model)
    material = json.loads(signature.read_text())["verificationMaterial"]
    assert len(material["x509CertificateChain"]["certificates"]) == 1
    ran = llmos("verify", "--key", keys / "root.crt", "--json")
    assert (ran.code, ran.json["method"], ran.json["signer"]) == (0, "certificate", "CN=alone")
    theirs = command("verify", "certificate", model.path, "--signature", signature, "--certificate_chain", keys / "root.crt")  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr
    assert "issuer certificate" in refused(llmos, keys / "stranger.crt") and fsck(ws).problems == ()


def refused(llmos: Llmos, *words: object) -> str:
    ran = llmos("verify", "--key", *words)
    assert (ran.code, ran.out) == (5, "")
    sentence, hint = ran.err.splitlines()[:2]
    assert sentence.startswith("error: ") and hint
    return sentence


def test_what_is_not_so_is_said(ws, model, keys, llmos: Llmos) -> None:
    public = keys / "key.pub"
    assert "has no signature" in refused(llmos, public)
    sign(ws, key=keys / "key.pem")
    assert "does not match the provided public key" in refused(llmos, keys / "other.pub")
    text = kept(ws, model).read_text()
    kept(ws, model).write_text(text[:-20])
    assert "is no signature of a model" in refused(llmos, public)
    kept(ws, model).write_text(text)
    damage(model.path / "a.txt", "Weights")
    assert "a.txt" in refused(llmos, public)
    damage(model.path / "a.txt", "weights")
    damage(model.path / ".gitattributes", "* +text")  # which model_signing does not look at
    assert ".gitattributes" in refused(llmos, public)
    damage(model.path / ".gitattributes", "* -text")
    assert llmos("verify", "--key", public).code == 0
    (model.path / "added.py").write_text("evil()")
    assert "added.py" in refused(llmos, public)
    (model.path / "added.py").unlink()
    (model.path / "b.txt").unlink()
    assert "b.txt" in refused(llmos, public)


def test_every_part_of_a_signature_counts(ws, model, keys, llmos: Llmos) -> None:
    sign(ws, key=keys / "key.pem")
    good = json.loads(kept(ws, model).read_text())
    signature = good["dsseEnvelope"]["signatures"][0]["sig"]
    statement = base64.b64decode(good["dsseEnvelope"]["payload"]).replace(b"a.txt", b"c.txt")
    for changed in ({"signatures": [{"sig": signature[:20] + "AAAA" + signature[24:]}]}, {"signatures": []}, {"payload": base64.b64encode(statement).decode()}, {"payload": ""}):  # fmt: skip
        kept(ws, model).write_text(json.dumps(good | {"dsseEnvelope": good["dsseEnvelope"] | changed}))
        refused(llmos, keys / "key.pub")
    for text in ("", "{}", "[]", "null", "[" * 100_000, '{"verificationMaterial": {"x509CertificateChain": []}}'):
        kept(ws, model).write_text(text)
        refused(llmos, keys / "key.pub")
        assert [problem.where for problem in fsck(ws).problems] == [f".llmos/signatures/{model.id}.sig"]


def test_a_signature_is_of_its_own_checkpoint_only(ws, model, keys, llmos: Llmos) -> None:
    sign(ws, key=keys / "key.pem")
    other = commit_to(ws, {"a.txt": "weights", "b.txt": "another"})
    kept(ws, other).write_text(kept(ws, model).read_text())
    refused(llmos, keys / "key.pub")
    assert [problem.what for problem in fsck(ws).problems] == ["is the signature of another checkpoint"]


@pytest.mark.parametrize(
    "harm", [lambda text: text + "x", lambda text: text.replace('"payload":"', '"payload":"AAAA'), lambda _: "\xff"]
)
def test_a_signature_that_is_none_any_more_comes_back_from_the_log(ws, model, keys, llmos: Llmos, harm) -> None:
    sign(ws, key=keys / "key.pem")
    good = kept(ws, model).read_text()
    kept(ws, model).chmod(0o644)
    kept(ws, model).write_text(harm(good))
    assert "codec" not in llmos("fsck").out
    told = llmos("fsck", "--repair")
    assert told.code == 0 and "from the log of operations" in told.out
    assert kept(ws, model).read_text() == good and llmos("verify", "--key", keys / "key.pub").code == 0


def test_keys_are_opened_by_a_password_and_never_told(ws, model, keys, tmp_path, llmos: Llmos, monkeypatch) -> None:
    sealed = tmp_path / "sealed.pem"
    key = serialization.load_pem_private_key((keys / "key.pem").read_bytes(), None)
    sealed.write_bytes(pem(key, "s3same"))  # type: ignore[arg-type]
    assert llmos("sign", "--key", sealed).code == 5
    monkeypatch.setenv(PASSWORD, "wrong")
    assert llmos("sign", "--key", sealed).code == 5
    monkeypatch.setenv(PASSWORD, "s3same")
    ran = llmos("sign", "--key", sealed)
    assert ran.code == 0, ran.err
    assert llmos("verify", "--key", keys / "key.pub").code == 0
    secret = (keys / "key.pem").read_text().splitlines()[1][:40]
    for path in ws.root.rglob("*"):
        if path.is_file():
            assert b"s3same" not in path.read_bytes() and secret.encode() not in path.read_bytes()


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--key", "nowhere.pem"), 4), (("--key", "llmos.yaml"), 2), (("--key", "../keys/key.pub"), 2)])  # fmt: skip
def test_what_is_no_key_is_said(words, code, ws, model, keys, llmos: Llmos) -> None:
    ran = llmos("sign", *words)
    assert (ran.code, ran.err.startswith("error: ")) == (code, True)
    assert not kept(ws, model).exists()


@pytest.mark.parametrize("option", ["--certificate", "--chain"])
@pytest.mark.parametrize(("name", "code"), [("nowhere.pem", 4), ("key.pub", 2)])
def test_what_is_no_certificate_is_said(option: str, name: str, code: int, ws, model, keys, llmos: Llmos) -> None:
    whole = ["--certificate", keys / "me.crt"] if option == "--chain" else []
    ran = llmos("sign", "--key", keys / "key.pem", *whole, option, keys / name)
    assert (ran.code, f"{name} is not a certificate" in ran.err or f"{name} cannot be read" in ran.err) == (code, True)
    assert not kept(ws, model).exists()


def test_the_place_of_a_signature_is_no_secret(ws, model, keys, llmos: Llmos) -> None:
    ran = llmos("verify", "--signature", "../keys/nowhere.sig", "--key", keys / "key.pub")
    assert (ran.code, "the signature ../keys/nowhere.sig cannot be read" in ran.err) == (4, True)


@pytest.mark.parametrize("kind", ["RSA", "ED25519"])
def test_keys_of_another_kind_are_refused(kind: str, ws, model, keys, llmos: Llmos) -> None:
    sign(ws, key=keys / "key.pem")
    made = rsa.generate_private_key(65537, 2048) if kind == "RSA" else ed25519.Ed25519PrivateKey.generate()
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (keys / "own.pem").write_bytes(made.private_bytes(serialization.Encoding.PEM, form, no_password))
    public = made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (keys / "own.pub").write_bytes(public)
    for words in (("sign", "--key", keys / "own.pem"), ("verify", "--key", keys / "own.pub")):
        ran = llmos(*words)
        assert (ran.code, "unexpectedly" in ran.err) == (2, False), ran.err


def test_a_private_key_verifies_nothing(ws, model, keys, llmos: Llmos) -> None:
    sign(ws, key=keys / "key.pem")
    ran = llmos("verify", "--key", keys / "key.pem")
    assert (ran.code, "is a private key" in ran.err) == (2, True)


def test_signing_is_an_operation(ws, model, keys, llmos: Llmos) -> None:
    llmos("sign", "--key", keys / "key.pem")
    first = kept(ws, model).read_text()
    assert "in place of the signature it had" in llmos("sign", "--key", keys / "key.pem").out
    assert llmos("undo").code == 0
    assert kept(ws, model).read_text() == first
    assert llmos("undo").code == 0
    assert not kept(ws, model).exists()


def test_a_signature_goes_with_its_checkpoint(ws, model, keys) -> None:
    sign(ws, key=keys / "key.pem")
    stays = commit_to(ws, {"a.txt": "unnamed"}, scratch=True, move=False)
    sign(ws, stays.id, key=keys / "key.pem")
    collected = gc(ws, expire="now", window="now")
    assert [each.kind for each in collected.garbage] == ["checkpoint"]
    assert list(signatures.signed(ws.dot)) == [model.id]
    kept(ws, stays).write_text("left over")
    assert [(each.kind, each.name) for each in gc(ws, expire="now").garbage] == [("signature", stays.id)]
    assert list(signatures.signed(ws.dot)) == [model.id]


def test_signatures_travel_and_pull_can_require_them(ws, model, keys, tmp_path, llmos: Llmos, monkeypatch) -> None:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    sign(ws, key=keys / "key.pem")
    sent = push(ws)
    assert (sent.signatures, sent.checkpoints) == (1, 0)
    assert push(ws).signatures == 0
    monkeypatch.chdir(tmp_path / "copy")
    assert llmos("verify", "--key", keys / "key.pub").code == 5
    assert "1 signature" in llmos("fetch").out
    assert llmos("verify", "--key", keys / "key.pub").code == 0

    second = commit_to(ws, {"a.txt": "2"})
    push(ws)
    unsigned = llmos("pull", "--require-signature", keys / "key.pub")
    assert (unsigned.code, "has no signature" in unsigned.err) == (5, True)
    sign(ws, key=keys / "other.pem")
    push(ws)
    assert llmos("pull", "--require-signature", keys / "key.pub").code == 5
    assert Workspace.find().resolve() == model.id
    assert llmos("pull", "--require-signature", keys / "other.pub").code == 0
    assert Workspace.find().resolve() == second.id
    stays = llmos("pull", "--require-signature", keys / "key.pub")  # nothing is new, and what is here is another's
    assert (stays.code, "does not match" in stays.err) == (5, True)
    assert fsck(Workspace.find()).problems == ()


def test_the_newer_signature_goes_to_all(ws, model, keys, tmp_path, llmos: Llmos, monkeypatch) -> None:
    """Whoever has the older one neither sends it over the newer nor keeps it."""
    remotes.add(ws, "origin", str(tmp_path / "far"))
    sign(ws, key=keys / "other.pem")
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    copy = Workspace.find(tmp_path / "copy")
    sign(ws, key=keys / "key.pem")
    push(ws)
    assert push(copy).signatures == 0
    monkeypatch.chdir(copy.root)
    assert llmos("pull", "--require-signature", keys / "key.pub").code == 0
    assert kept(copy, model).read_text() == kept(ws, model).read_text()
    assert (push(copy).signatures, push(ws).signatures, fetch(ws).signatures, fetch(copy).signatures) == (0, 0, 0, 0)
    assert llmos("undo").code == 0 and llmos("verify", "--key", keys / "other.pub").code == 0
    assert push(copy).signatures == 0 and fetch(copy).signatures == 1, "as a tag would come again"
    assert llmos("undo").code == 0 and llmos("push", "--force").code == 0 and fetch(ws).signatures == 1
    assert kept(ws, model).read_text() == kept(copy, model).read_text()
    assert fsck(ws).problems == fsck(copy).problems == () and llmos("fsck", "--remote", "origin").code == 0


def test_two_who_signed_apart_are_told(ws, model, keys, tmp_path, llmos: Llmos, monkeypatch) -> None:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    copy = Workspace.find(tmp_path / "copy")
    sign(ws, key=keys / "key.pem")
    sign(copy, key=keys / "other.pem")
    theirs, mine = kept(ws, model).read_text(), kept(copy, model).read_text()
    push(ws)
    monkeypatch.chdir(copy.root)
    for words in (("push",), ("fetch",)):
        told = llmos(*words)
        assert (told.code, f"the signature of {model.id[:12]} " in told.err) == (0, True), words
        assert kept(copy, model).read_text() == mine
    clone(str(tmp_path / "far"), tmp_path / "third")
    assert kept(Workspace.find(tmp_path / "third"), model).read_text() == theirs

    assert llmos("sign", "--remove", "--key", keys / "key.pem").code == 2
    assert "brings it back" in llmos("sign", "--remove").out and llmos("sign", "--remove").code == 4
    assert llmos("fetch").code == 0 and kept(copy, model).read_text() == theirs
    assert llmos("undo").code == 0 and not kept(copy, model).exists(), "that of the fetch"
    assert llmos("undo").code == 0 and kept(copy, model).read_text() == mine
    sign(copy, key=keys / "other.pem")
    assert push(copy).signatures == 1 and fetch(ws).signatures == 1

    sign(ws, key=keys / "key.pem")
    sign(copy, key=keys / "other.pem")
    push(ws)
    assert llmos("push", "--force").code == 0
    assert fetch(ws).signatures == 1 and kept(ws, model).read_text() == kept(copy, model).read_text()


def altered(text: str) -> str:
    """Still a bundle, and of the same checkpoint: only a key tells, or who remembers."""
    value = json.loads(text)
    (signature,) = value["dsseEnvelope"]["signatures"]
    raw = bytearray(base64.b64decode(signature["sig"]))
    raw[20] ^= 1
    signature["sig"] = base64.b64encode(raw).decode()
    return json.dumps(value)


@pytest.mark.parametrize("came", [False, True], ids=["made here", "fetched"])
def test_what_was_put_in_a_signatures_place_is_found_put_back_and_not_sent(
    ws, model, keys, tmp_path, llmos: Llmos, monkeypatch, came: bool
) -> None:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    sign(ws, key=keys / "key.pem")
    push(ws)
    if came:
        clone(str(tmp_path / "far"), tmp_path / "copy")
        ws = Workspace.find(tmp_path / "copy")
        monkeypatch.chdir(ws.root)
    assert fsck(ws).problems == ()
    good = kept(ws, model).read_text()
    damage(kept(ws, model), altered(good))
    told = llmos("fsck")
    assert (told.code, "is not what was put there" in told.out + told.err) == (5, True), told.out
    sent = llmos("push")
    assert (sent.code, "is not what was put there, and nothing was sent" in sent.err) == (5, True)
    clone(str(tmp_path / "far"), tmp_path / "third")
    assert kept(Workspace.find(tmp_path / "third"), model).read_text() == good
    assert llmos("fsck", "--repair").code == 0 and kept(ws, model).read_text() == good
    assert fsck(ws).problems == ()


def test_the_signature_of_another_checkpoint_is_refused_before_it_is_here(
    ws, model, keys, tmp_path, llmos: Llmos
) -> None:
    far = tmp_path / "far"
    remotes.add(ws, "origin", str(far))
    sign(ws, key=keys / "key.pem")
    push(ws)
    clone(str(far), tmp_path / "copy")
    other = commit_to(ws, {"a.txt": "other"})
    sign(ws, key=keys / "key.pem")
    push(ws)
    said = Vouching(kept(ws, model).read_text()).said(other.id)
    (far / layout.signature_name(other.id)).write_bytes(layout.text(said))
    copy = Workspace.find(tmp_path / "copy")
    with pytest.raises(Corrupt, match=f"signature of {other.id[:12]} on the remote is that of another checkpoint"):
        fetch(copy)
    assert not kept(copy, other).exists() and fsck(copy).problems == () and not (copy.checkpoints / other.id).exists()


@pytest.mark.parametrize("guard", ["--require-signature", "--api-key-file"])
def test_a_guard_that_names_no_file_is_no_leave_to_do_without(ws, model, llmos: Llmos, guard: str) -> None:
    """As a script says it whose variable is not set."""
    (ws.configs / "deploy.yaml").write_text("deploy: {port: 0}\n")
    told = llmos("deploy", "--dry-run", guard, "")
    assert (told.code, "names no file" in told.err) == (2, True)
    key = guard.removeprefix("--").replace("-", "_")
    (ws.configs / "deploy.yaml").write_text(f'deploy: {{port: 0, {key}: ""}}\n')
    assert llmos("deploy", "--dry-run").code == 2


def test_a_deployment_can_require_one(ws, model, keys, llmos: Llmos) -> None:
    (ws.configs / "deploy.yaml").write_text("deploy: {port: 0}\n")
    unsigned = llmos("deploy", "--dry-run", "--require-signature", keys / "key.pub")
    assert (unsigned.code, "has no signature" in unsigned.err) == (5, True)
    sign(ws, key=keys / "key.pem")
    assert llmos("deploy", "--dry-run", "--require-signature", keys / "other.pub").code == 5
    assert llmos("deploy", "--dry-run", "--require-signature", keys / "key.pub").code == 0
    assert llmos("deploy", "--require-signature", keys / "other.pub").code == 5
    assert ws.runs.list()[0].operation != "deploy"
    changed = model.path / next(iter(model.manifest.tree))
    times = changed.stat()
    changed.chmod(0o644)
    changed.write_bytes(bytes(byte ^ 1 for byte in changed.read_bytes()))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # what only sizes and times would not tell
    assert llmos("deploy", "--require-signature", keys / "key.pub").code == 5
    assert llmos("verify", "--key", keys / "key.pub").code == 5


def test_without_the_extra_it_is_asked_for(ws, model, keys, llmos: Llmos, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = llmos("sign", "--key", keys / "key.pem")
    assert (ran.code, "pip install 'llmos-cli[sign]'" in ran.err) == (2, True)
