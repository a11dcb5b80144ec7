"""A second implementation of the workspace, written from docs/format.md alone, with the standard library (and AES from cryptography)."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import shutil
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.manifest import Made
from llmos_cli.core.workspace import Workspace


class Other:
    """What it knows of a workspace it knows from the page."""

    def __init__(self, root: Path) -> None:
        self.root, self.dot = root, root / ".llmos"
        assert "format: 1" in (root / "llmos.yaml").read_text().splitlines()

    def ref(self, name: str) -> str | None:
        path = self.dot / name
        return path.read_text().removesuffix("\n") if path.is_file() else None

    def head(self) -> str | None:
        value = self.ref("HEAD")
        return self.ref(value.removeprefix("ref: ")) if value and value.startswith("ref: ") else value

    def manifest(self, checkpoint: str) -> dict[str, Any]:
        return json.loads((self.root / "checkpoints" / checkpoint / "manifest.json").read_bytes())

    def damaged(self, checkpoint: str) -> list[str]:
        folder, manifest = self.root / "checkpoints" / checkpoint, self.manifest(checkpoint)
        whole = identify(manifest) == manifest["id"] == checkpoint and keeps_its_hash(folder / "manifest.json")
        wrong = [] if whole else ["manifest.json"]
        dropped = (self.dot / "dropped" / checkpoint).exists()
        for name, entry in {} if dropped else manifest["tree"].items():
            content = (folder / name).read_bytes()
            if entry != {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}:
                wrong.append(name)
        return wrong

    def moved_otherwise(self) -> list[str]:
        """Refs that are not where the last operation left them, or that none made."""
        lines = (self.dot / "operations.jsonl").read_text().splitlines()
        left = {each["what"]: each["after"] for line in lines for each in json.loads(line)["changes"]}
        folders = [self.dot / "refs" / kind for kind in ("heads", "tags", "stages", "data")]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        names = {path.relative_to(self.dot).as_posix() for path in files}
        moved = {what for what in left if what == "HEAD" or what.startswith("refs/")}
        return sorted(ref for ref in names | moved if ref not in left or self.ref(ref) != left[ref])

    def opened(self, checkpoint: str, key: bytes) -> dict[str, bytes]:
        """The files of a sealed checkpoint."""
        line = (self.dot / "sealed" / f"{checkpoint}.json").read_text().removesuffix("\n")
        seal = json.loads(line)
        unsigned = json.dumps({**seal, "hash": ""}, sort_keys=True)
        assert hashlib.sha256(unsigned.encode()).hexdigest() == seal["hash"] and seal["checkpoint"] == checkpoint
        salt, tree = bytes.fromhex(seal["salt"]), self.manifest(checkpoint)["tree"]
        assert hmac.new(hkdf(key, salt, "llmos names"), b"check", "sha256").hexdigest() == seal["check"]
        found = {}
        for name, entry in seal["tree"].items():
            data = (self.dot / "sealed" / entry["sha256"][:2] / entry["sha256"][2:]).read_bytes()
            assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} and data[:8] == b"llmos-v1"
            aes = self.aes(key, salt, data[8:40], tree[name]["sha256"])
            pieces = [data[at : at + (1 << 20) + 16] for at in range(40, len(data), (1 << 20) + 16)]
            nonces = [number.to_bytes(11, "big") + bytes([piece is pieces[-1]]) for number, piece in enumerate(pieces)]
            found[name] = b"".join(map(aes.decrypt, nonces, pieces, [None] * len(pieces)))
        return found

    def seal(self, checkpoint: str, key: bytes) -> None:
        """Of files smaller than one piece."""
        salt, tree = os.urandom(32), {}
        for name, entry in self.manifest(checkpoint)["tree"].items():
            content, own = (self.root / "checkpoints" / checkpoint / name).read_bytes(), os.urandom(32)
            aes = self.aes(key, salt, own, entry["sha256"])
            data = b"llmos-v1" + own + aes.encrypt(bytes(11) + b"\1", content, None)
            sha256 = hashlib.sha256(data).hexdigest()
            tree[name] = {"sha256": sha256, "size": len(data)}
            place = self.dot / "sealed" / sha256[:2] / sha256[2:]
            place.parent.mkdir(parents=True, exist_ok=True)
            written(place, data)
            synced(place.parent)
        check = hmac.new(hkdf(key, salt, "llmos names"), b"check", "sha256").hexdigest()
        seal = {"checkpoint": checkpoint, "cipher": "AES-256-GCM", "salt": salt.hex(), "check": check, "tree": tree}
        digest = hashlib.sha256(json.dumps({**seal, "hash": ""}, sort_keys=True).encode()).hexdigest()
        with self.locked():
            self.replace(
                f"sealed/waiting/{checkpoint}.json", json.dumps({**seal, "hash": digest}, sort_keys=True) + "\n"
            )
            self.replace("pending.json", self.line(f"seal {checkpoint}", [], seals=[checkpoint]))

    def aes(self, key: bytes, salt: bytes, own: bytes, sha256: str) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(hkdf(hkdf(key, salt, "llmos contents"), own, f"llmos file sealed/{sha256}"))

    def results(self) -> dict[str, dict[str, Any]]:
        """What stages made, by key."""
        found = {}
        for path in (self.dot / "pipeline" / "results").glob("*.json"):
            found[path.stem] = result = json.loads(path.read_bytes())
            facts = json.dumps(result["facts"], sort_keys=True)
            assert result["key"] == path.stem == hashlib.sha256(facts.encode()).hexdigest()
        return found

    def stage(self, name: str) -> dict[str, Any]:
        return json.loads((self.dot / "pipeline" / "stages" / f"{name}.json").read_bytes())

    def output(self, value: str) -> bytes:
        data = (self.dot / "pipeline" / "objects" / value.removesuffix("+x")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == value.removesuffix("+x")
        return data

    def remember(self, result: dict[str, Any], outputs: dict[str, bytes]) -> None:
        """A result, as if its stage had run here."""
        for data in outputs.values():
            self.replace(f"pipeline/objects/{hashlib.sha256(data).hexdigest()}", data)
        last = {each: result[each] for each in ("key", "facts", "outputs")} | {"status": "done", "process": None}
        for name, value in ((f"results/{result['key']}", result), (f"stages/{result['stage']}", last)):
            self.replace(f"pipeline/{name}.json", json.dumps(value, indent=1) + "\n")

    def run_status(self, run: str) -> str:
        lines = (self.root / "runs" / run / "events.jsonl").read_text().splitlines()
        told = [event for event in map(json.loads, lines) if event["event"] in ("started", "ended")]
        return told[-1]["status"] if told[-1]["event"] == "ended" else "running or died"

    def not_as_given(self, run: str) -> list[str]:
        """Files of a run that are not what it was given."""
        folder, said = self.root / "runs" / run, dict[str, list[Any]]()
        for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines()):
            for name, entry in event["files"].items() if event["event"] == "kept" else ():
                said.setdefault(name, []).append(entry)
        paths = [path for path in (folder / "config.yaml", *folder.glob("configs/*")) if path.is_file()]
        there = {path.relative_to(folder).as_posix(): entry_of(path.read_bytes()) for path in paths}
        known = {
            name: each[-2:] + [entry for entry in each if entry][-2:] * (each[-1] is None)
            for name, each in said.items()
        }
        return [name for name in sorted({*said, *there}) if said and there.get(name) not in known.get(name, [])]

    def store(self, files: dict[str, bytes], operation: str, parents: list[str], config: Any = None) -> str:
        """A checkpoint, and the current branch at it."""
        tree = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()}
        made = {
            "operation": operation,
            "parents": parents,
            "config": config or {},
            "data": {},
            "environment": {},
            "seed": 0,
        }
        manifest = {"tree": tree, "made": made | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}}
        manifest["id"] = identify(manifest)
        folder = self.scratch("stage")
        folder.mkdir()
        text = hashed(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        for name, data in {**files, "manifest.json": text.encode()}.items():
            written(folder / name, data)
            (folder / name).chmod(0o444)
        synced(folder)
        branch = (self.ref("HEAD") or "").removeprefix("ref: ")
        with self.locked():
            folder.rename(self.root / "checkpoints" / manifest["id"])
            synced(self.root / "checkpoints")
            self.operate(f"{operation} on {branch}", [(branch, self.ref(branch), manifest["id"])])
        return manifest["id"]

    def operate(self, name: str, changes: list[tuple[str, str | None, str | None]]) -> None:
        assert not (self.dot / "pending.json").exists() and all(self.ref(what) == before for what, before, _ in changes)
        line = self.line(name, changes)
        self.replace("pending.json", line)
        for what, _, after in changes:
            self.replace(what, f"{after}\n")
        with open(self.dot / "operations.jsonl", "ab", buffering=0) as log:
            log.write(line.encode())
            os.fsync(log.fileno())
        (self.dot / "pending.json").unlink()
        synced(self.dot)

    def line(self, name: str, changes: list[tuple[str, str | None, str | None]], **more: list[str]) -> str:
        told = [dict(zip(("what", "before", "after"), change, strict=True)) for change in changes]
        operation = {"id": os.urandom(4).hex(), "name": name, "changes": told, "time": time.time()}
        return json.dumps({**operation, "run": "", "kind": "do", "of": "", **more}) + "\n"

    def replace(self, name: str, text: str | bytes) -> None:
        new = self.scratch(".file")
        written(new, text.encode() if isinstance(text, str) else text)
        (self.dot / name).parent.mkdir(parents=True, exist_ok=True)
        new.rename(self.dot / name)
        synced((self.dot / name).parent)

    def locked(self):
        (self.dot / "locks").mkdir(exist_ok=True)
        file = open(self.dot / "locks" / "refs", "w")  # noqa: SIM115 (who is given it closes it, which lets go)
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def scratch(self, kind: str) -> Path:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(stat[19]) / os.sysconf("SC_CLK_TCK")
        (self.dot / "tmp").mkdir(exist_ok=True)
        return self.dot / "tmp" / f"{kind}_{os.getpid()}_{started}_{os.urandom(4).hex()}_{os.uname().nodename}"


class OtherRemote:
    """A plain or an encrypted remote, read by what the page says."""

    def __init__(self, root: Path, key: bytes | None = None) -> None:
        self.root = root
        described = json.loads((root / "llmos.json").read_bytes())
        assert (described["llmos"], described["format"], "encryption" in described) == ("remote", 1, key is not None)
        if key is not None:
            self.salt = bytes.fromhex(described["encryption"]["salt"])
            self.names, self.contents = (hkdf(key, self.salt, f"llmos {each}") for each in ("names", "contents"))
            self.salts = hkdf(key, self.salt, "llmos salts")
            assert self.mac("check") == described["encryption"]["check"]
        self.key = key

    def mac(self, name: str) -> str:
        return hmac.new(self.names, name.encode(), "sha256").hexdigest()

    def stored(self, name: str) -> str:
        kind, _, rest = name.partition("/")
        if self.key is None:
            return name
        if kind == "refs":
            folder, _, number = rest.partition("/")
            return f"refs/{self.mac(f'refs/{folder}')}/{number}"
        hidden = self.mac(name)
        return f"{kind}/{hidden[:2]}/{hidden[2:]}" if kind == "objects" else f"{kind}/{hidden}"

    def read(self, name: str) -> bytes:
        return self.opened(self.stored(name), name)

    def line(self, name: str) -> dict[str, Any]:
        """Of a file that has a hash of itself; without it."""
        value = json.loads(text := self.read(name))
        digest = value.pop("hash")
        assert hashlib.sha256(text.replace(digest.encode(), b"")).hexdigest() == digest
        return dict(value)

    def opened(self, stored: str, name: str = "") -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        data = (self.root / stored).read_bytes()
        if self.key is None:
            return data
        own = data[8:40]
        assert not name.startswith("objects/") or own == hmac.digest(self.salts, name.encode(), "sha256")
        aes = AESGCM(hkdf(self.contents, own, f"llmos file {stored}"))
        pieces = [data[at : at + (1 << 20) + 16] for at in range(40, len(data), (1 << 20) + 16)]
        nonces = [at.to_bytes(11, "big") + bytes([at == len(pieces) - 1]) for at in range(len(pieces))]
        return b"".join(map(aes.decrypt, nonces, pieces, [None] * len(pieces)))

    def ref(self, ref: str) -> str | None:
        plain = b"abcdefghijklmnopqrstuvwxyz0123456789._-"
        said = "".join(chr(byte) if byte in plain else f"%{byte:02x}" for byte in ref.removeprefix("refs/").encode())
        folder = self.stored(f"refs/{said}/x").rpartition("/")[0]
        last = max(path.name for path in (self.root / folder).iterdir())
        told = self.line(f"refs/{said}/{last}")
        assert told["ref"] == ref
        return told["value"]

    def files(self, tree: dict[str, Any]) -> dict[str, bytes]:
        names = {name: each["sha256"] for name, each in tree.items()}
        return {name: self.read(f"objects/{sha[:2]}/{sha[2:]}") for name, sha in names.items()}

    def backups(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path in (self.root / "backups").iterdir():
            backup = json.loads(self.opened(f"backups/{path.name}"))
            found[backup["backup"]] = backup
            assert self.stored(f"backups/{backup['backup']}.json") == f"backups/{path.name}"
        return found

    def restore(self, root: Path) -> None:
        """The workspace of the last backup."""
        (_, backup) = max(self.backups().items())
        files = self.files(json.loads(self.files({"tree": backup["tree"]})["tree"]))
        for checkpoint in backup["checkpoints"]:
            whole = (self.root / self.stored(f"checkpoints/{checkpoint}.json")).exists()
            text = self.read(f"{'checkpoints' if whole else 'lineage'}/{checkpoint}.json")
            found = self.files(json.loads(text)["tree"]) if whole else {}
            files |= {f"checkpoints/{checkpoint}/{name}": data for name, data in found.items()}
            files[f"checkpoints/{checkpoint}/manifest.json"] = text
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            written(root / name, data)
            (root / name).chmod(0o444 if name.startswith("checkpoints/") else 0o644)


def entry_of(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def identify(manifest: dict[str, Any]) -> str:
    content = {"made": manifest["made"], "tree": manifest["tree"]}
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def canonical(value: Any) -> str:
    """RFC 8785: keys in the order of their UTF-16, numbers as JavaScript writes them."""
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(key)}:{canonical(item)}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    shown, point = "".join(map(str, digits)), len(digits) + int(exponent)
    if value == 0:
        return "0"
    if len(shown) <= point <= 21:
        told = shown + "0" * (point - len(shown))
    elif 0 < point <= 21:
        told = f"{shown[:point]}.{shown[point:]}"
    elif -6 < point <= 0:
        told = "0." + "0" * -point + shown
    else:
        told = shown[0] + (f".{shown[1:]}" if shown[1:] else "") + f"e{point - 1:+d}"
    return "-" * sign + told


def hashed(text: str) -> str:
    first, rest = text.split("\n", 1)
    return f'{first}\n "hash": "{hashlib.sha256(text.encode()).hexdigest()}",\n{rest}'


def keeps_its_hash(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    first, _, rest = text.split("\n", 2)
    return text == hashed(f"{first}\n{rest}")


def hkdf(key: bytes, salt: bytes, info: str) -> bytes:
    """RFC 5869, of the 32 bytes that one round gives."""
    return hmac.digest(hmac.digest(salt, key, "sha256"), info.encode() + b"\1", "sha256")


def written(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def synced(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the tool: /proc")


@pytest.fixture(autouse=True)
def inside(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ws.root)


def test_it_reads_what_llmos_wrote(ws: Workspace, commit, llmos) -> None:
    first, second = commit(**{"a.bin": "one", "b.bin": "two"}).id, commit("prune", **{"a.bin": "three"}).id
    assert llmos("tag", "v1", first).code == 0 and llmos("rm", first, "--force").code == 0
    other = Other(ws.root)
    assert other.head() == second and other.ref("refs/tags/v1") == first
    assert other.damaged(first) == other.damaged(second) == [] and (other.dot / "dropped" / first).exists()
    assert {other.run_status(run.name) for run in (ws.root / "runs").iterdir()} == {"done"}
    path = ws.root / "checkpoints" / second / "a.bin"
    path.chmod(0o644)
    path.write_bytes(b"thrEe")
    assert other.damaged(second) == ["a.bin"]


def test_it_knows_as_fsck_does_which_ref_no_operation_moved(ws: Workspace, commit, llmos, tmp_path: Path) -> None:
    first, second = commit(**{"a.bin": "one"}).id, commit(**{"a.bin": "two"}).id
    assert llmos("tag", "v1", first).code == llmos("remote", "add", "origin", tmp_path / "far").code == 0
    assert llmos("push", "--all").code == llmos("clone", tmp_path / "far", tmp_path / "copy").code == 0
    copy = Other(tmp_path / "copy")
    assert copy.head() == second and copy.moved_otherwise() == Other(ws.root).moved_otherwise() == []
    for ref, value in (("refs/heads/evil", first), ("refs/tags/v1", second)):
        copy.replace(ref, f"{value}\n")
    checked = llmos("-C", tmp_path / "copy", "fsck", "--json")
    assert checked.code == 5
    assert copy.moved_otherwise() == sorted(
        each["where"] for each in json.loads(checked.out.splitlines()[0])["problems"]
    )


NUMBERS = [
    0.0,
    1.0,
    -1.5,
    2e-05,
    1e-7,
    0.05,
    1e21,
    123456789012345680.0,
    5e-324,
    1.7976931348623157e308,
    -0.000001,
    1e20,
]
ODD = {
    "prune": {"numbers": NUMBERS, "é\u2028": '\x01\t"\\/\x7f', "\ue000": 1, "\U0001f600": {"": [[], {}, None, True]}}
}
"""Of the last two keys one comes first as UTF-16, the other by code points."""


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_its_numbers_are_those_of_the_standard(value: float) -> None:
    assert number(value) == rfc8785.dumps(value).decode()


def test_it_reads_the_odd_manifests_that_llmos_wrote(ws: Workspace) -> None:
    made = Made("prune", (), ODD, {}, {"é": -0.0}, 7, "2026-11-22T10:45:01Z")
    with ws.begin("prune", config={}) as run, ws.stage() as staged:
        (staged / "a").write_text("x")
        checkpoint = run.commit(staged, made)
    other = Other(ws.root)
    assert other.damaged(checkpoint.id) == []
    path = checkpoint.path / "manifest.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace(" 1e-07,", " 1e-7,"))
    assert other.damaged(checkpoint.id) == ["manifest.json"]


def test_llmos_reads_what_it_wrote(ws: Workspace, llmos) -> None:
    other = Other(ws.root)
    first = other.store({"config.json": b"{}", "model.safetensors": b"weights"}, "train", [])
    second = other.store({"config.json": b"{}", "model.safetensors": b"fewer"}, "prune", [first], ODD)
    with other.locked():
        other.operate("tag small", [("refs/tags/small", None, second)])
    checked = llmos("fsck", "--json")
    assert checked.code == 0, checked.out
    listed = llmos("log", "--json").json
    assert [entry["id"] for entry in listed["checkpoints"]] == [second, first]
    assert llmos("show", "small").code == 0 and llmos("gc", "--expire", "0").code == 0
    assert llmos("undo").code == 0 and other.ref("refs/tags/small") is None
    assert llmos("undo").code == 0 and other.head() == first
    assert llmos("fsck").code == 0


def test_it_tells_what_a_run_was_given_from_what_was_forged(ws: Workspace, commit_with_config, llmos) -> None:
    commit_with_config("seed: 1\n")
    other, run = Other(ws.root), ws.runs.list()[0].path
    assert other.not_as_given(run.name) == []
    (run / "config.yaml").unlink()
    (run / "configs" / "train.yaml").write_text("seed: 9\n")
    (run / "configs" / "more.yaml").write_text("seed: 9\n")
    told = [f"runs/{run.name}/{name}" for name in other.not_as_given(run.name)]
    assert (
        told == [each["where"] for each in json.loads(llmos("fsck", "--json").out.splitlines()[0])["problems"]]
        and len(told) == 3
    )
    (run / "configs" / "more.yaml").unlink()
    assert llmos("fsck", "--accept-loss", told[0], "--accept-loss", told[-1]).code == 0
    assert other.not_as_given(run.name) == []


def test_an_operation_it_began_is_finished_by_llmos(ws: Workspace, llmos) -> None:
    other = Other(ws.root)
    first = other.store({"config.json": b"{}"}, "train", [])
    change = {"what": "refs/tags/late", "before": None, "after": first}
    operation = {
        "id": "0123abcd",
        "name": "tag late",
        "changes": [change],
        "time": time.time(),
        "run": "",
        "kind": "do",
        "of": "",
    }
    other.replace("pending.json", json.dumps(operation) + "\n")
    assert llmos("tag", "next").code == 0
    assert other.ref("refs/tags/late") == other.ref("refs/tags/next") == first
    assert not (other.dot / "pending.json").exists()


@pytest.mark.parametrize("encrypted", [False, True])
def test_it_reads_a_remote(
    ws: Workspace, commit, llmos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    pytest.importorskip("cryptography", reason="needs the tool cryptography")
    monkeypatch.setenv("LLMOS_KEY", "5" * 64)
    files = {"a": "x" * (2 << 20), "b": "y" * ((1 << 20) + 1), "c": ""}
    first, second = commit(**files).id, commit(a="other").id
    added = llmos("remote", "add", "origin", tmp_path / "far", *(["--encrypted"] if encrypted else []))
    done = [added, llmos("tag", "Größe/A-1", first), llmos("push", "--all"), llmos("backup")]
    done += [llmos("tag", "gone"), llmos("push", "gone"), llmos("push", "--delete", "gone")]
    assert {each.code for each in done} == {0}, done
    far = OtherRemote(tmp_path / "far", bytes.fromhex("5" * 64) if encrypted else None)
    assert (far.ref("refs/heads/main"), far.ref("refs/tags/Größe/A-1")) == (second, first)
    assert far.ref("refs/tags/gone") is None
    text = far.read(f"checkpoints/{first}.json")
    assert text == (ws.root / "checkpoints" / first / "manifest.json").read_bytes()
    assert far.files(json.loads(text)["tree"]) == {name: content.encode() for name, content in files.items()}
    for run in (ws.root / "runs").iterdir():
        told = json.loads(far.read(f"runs/{run.name}.json"))
        assert (
            told["run"] == run.name and far.files(told["tree"])["events.jsonl"] == (run / "events.jsonl").read_bytes()
        )


def test_it_opens_what_llmos_sealed_and_llmos_what_it_sealed(
    ws: Workspace, commit, llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="needs the tool cryptography")
    monkeypatch.setenv("LLMOS_KEY", "5" * 64)
    files = {"a": "x" * (2 << 20), "b": "y" * ((1 << 20) + 1), "c": "", "d": "small"}
    first, second = commit(**files).id, commit(scratch=True, d="other", e="more").id
    assert llmos("seal", first).code == 0
    other = Other(ws.root)
    assert other.opened(first, bytes.fromhex("5" * 64)) == {name: text.encode() for name, text in files.items()}
    other.seal(second, bytes.fromhex("5" * 64))
    assert "2 sealed, 2 decrypted and compared" in llmos("fsck").out
    assert {path.name for path in (ws.root / "checkpoints" / second).iterdir()} == {"manifest.json"}
    assert llmos("unseal", second).code == 0 and other.damaged(second) == []


@pytest.mark.parametrize("encrypted", [False, True])
def test_it_restores_what_llmos_backed_up(
    ws: Workspace, commit, llmos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    pytest.importorskip("cryptography", reason="needs the tool cryptography")
    monkeypatch.setenv("LLMOS_KEY", "5" * 64)
    gone, first = commit(a="gone").id, commit(a="1", b="same").id
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    (ws.root / "code.py").write_text("x = 1\n")
    state = ws.runs.list()[0].path / "state"
    state.mkdir()
    (state / "training.pt").write_bytes(b"to be resumed")
    added = llmos("remote", "add", "origin", tmp_path / "far", *(["--encrypted"] if encrypted else []))
    done = [added, llmos("backup"), llmos("tag", "v1", first), llmos("rm", gone), llmos("gc", "--window", "now")]
    assert {each.code for each in [*done, llmos("backup")]} == {0}, done
    far = OtherRemote(tmp_path / "far", bytes.fromhex("5" * 64) if encrypted else None)
    assert [each["checkpoints"] for each in far.backups().values()] == [sorted([gone, first])] * 2
    far.restore(tmp_path / "copy")
    copy = Other(tmp_path / "copy")
    assert copy.head() == copy.ref("refs/tags/v1") == first and copy.moved_otherwise() == []
    assert copy.damaged(first) == copy.damaged(gone) == [] and (copy.dot / "dropped" / gone).exists()
    for name in ("code.py", "configs/train.yaml", str((state / "training.pt").relative_to(ws.root))):
        assert (copy.root / name).read_bytes() == (ws.root / name).read_bytes()
    checked = llmos("-C", copy.root, "fsck", "--json")
    assert checked.code == 0, checked.out
    assert llmos("-C", copy.root, "log").out == llmos("log").out and llmos("-C", copy.root, "tag", "next").code == 0


PIPELINE = """\
format: 1
pipeline:
  shout: {sh: "mkdir -p bin; tr a-z A-Z < raw.txt > bin/loud; chmod +x bin/*", inputs: [raw.txt], outputs: [bin]}
  greet: {sh: "echo \\"$who\\" > \\"$who.txt\\"", foreach: {who: [ann]}, outputs: ["${who}.txt"]}
"""


def test_it_reads_and_writes_what_stages_made(ws: Workspace, llmos, tmp_path: Path) -> None:
    (ws.root / "raw.txt").write_text("one\n")
    (ws.root / "llmos.yaml").write_text(PIPELINE)
    assert llmos("trust", "--pipeline").code == llmos("run", "--cache-dir", tmp_path / "far").code == 0
    other, made = Other(ws.root), {"bin/loud": b"ONE\n", "ann.txt": b"ann\n"}
    results = {each["stage"]: each for each in other.results().values()}
    assert sorted(results) == ["greet/ann", "shout"]
    outputs = {name: value for each in results.values() for name, value in each["outputs"].items()}
    assert {name: other.output(value) for name, value in outputs.items()} == made
    assert [name for name, value in outputs.items() if value.endswith("+x")] == ["bin/loud"]
    far = OtherRemote(tmp_path / "far")
    for name, each in results.items():
        assert (other.stage(name)["key"], other.stage(name)["status"]) == (each["key"], "done")
        assert far.line(f"results/{each['key']}.json") == each
        sizes = {path: {"sha256": value.removesuffix("+x")} for path, value in each["outputs"].items()}
        assert far.files(sizes) == {path: made[path] for path in each["outputs"]}
    shutil.rmtree(other.dot / "pipeline")
    (ws.root / "bin" / "loud").unlink()
    for each in results.values():
        other.remember(each, {name: made[name] for name in each["outputs"]})
    ran = llmos("run", "--json")
    assert ran.code == 0 and os.access(ws.root / "bin" / "loud", os.X_OK)
    assert {name: (ws.root / name).read_bytes() for name in made} == made
    told = {each["stage"]: each["status"] for each in ran.json["stages"]}
    assert told == {"greet/ann": "fresh", "shout": "restored"}
    assert llmos("fsck").code == 0
