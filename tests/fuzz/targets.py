"""What is fuzzed: every parser of bytes that somebody else may have written. It gives a value or refuses with an LlmosError;
any other exception is a finding. `__main__.py` feeds them for long, `test_targets.py` for seconds and with what was found.
"""

from __future__ import annotations

import json
import math
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmos_cli.core import audit, continuity, manifest, records, seal, signatures, yaml12
from llmos_cli.core.cipher import MAGIC, SALT
from llmos_cli.core.config import read_file
from llmos_cli.core.redaction import redacted
from llmos_cli.core.refs import HEAD, HEADS, Refs
from llmos_cli.core.remote import backups, hostile, layout
from llmos_cli.core.remote.vault import Vault
from llmos_cli.core.workspace import Workspace
from llmos_cli.data.files import read as read_rows
from llmos_cli.models import described, headers
from llmos_cli.operations import gate, remote
from llmos_cli.operations.gc import duration
from llmos_cli.operations.pipeline import stages
from llmos_cli.operations.tuning import space
from llmos_cli.options.data import DataOptions
from llmos_cli.transports.local import LocalStore

Target = Callable[[bytes], object]

_HELD = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
FOLDER = Path(_HELD.name).resolve()


_MADE = manifest.Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")


def at(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _workspace() -> Workspace:
    root = FOLDER / "w"
    return Workspace(root) if (root / ".llmos" / HEAD).exists() else Workspace.create(root)


def a_manifest(data: bytes) -> object:
    at("c/manifest.json", data)
    return manifest.read(FOLDER / "c")


def a_ref(data: bytes) -> object:
    at("dot/HEAD", data)
    at("dot/refs/heads/main", data)
    refs = Refs(FOLDER / "dot")
    refs.read(HEADS + "main")
    return refs.head()


def the_op_log(data: bytes) -> object:
    ws = _workspace()
    ws.oplog.path.write_bytes(data)
    list(ws.oplog.operations())
    ws.oplog.removed(0.0)
    ws.oplog.left_for("0" * 64)
    continuity.flaws(ws.oplog, ws.oplog.audit)
    return ws.oplog.protected(0.0), ws.oplog.unreadable()


def the_audit_log(data: bytes) -> object:
    log, _, head = data.partition(b"\0")
    at("a/audit.jsonl", log)
    at("a/audit.head", head)
    return audit.check(audit.Audit(FOLDER / "a"))


def a_yaml(data: bytes) -> object:
    return read_file(at("w/x.yaml", data), FOLDER / "w").plain()


def settings(data: bytes) -> object:
    """llmos.yaml: remotes and the pipeline."""
    ws = _workspace()
    (ws.root / "llmos.yaml").write_bytes(data)
    try:
        return remote.settings(ws), stages.read(ws)
    finally:
        (ws.root / "llmos.yaml").write_text("format: 1\n")


def a_yaml_text(data: bytes) -> object:
    return yaml12.parse(data.decode(errors="replace"), "x.yaml").plain()


def of_a_remote(data: bytes) -> object:
    """One of the small files: the first byte says which."""
    kinds: list[Target] = [
        hostile.read_manifest,
        hostile.read_ref,
        hostile.read_run,
        lambda text: hostile.read_signature(text, "0" * 64),
        lambda text: layout.read_format(text, "there"),
        backups.read,
        lambda text: hostile.check_events(at("events.jsonl", text), "a run"),
    ]
    return kinds[data[0] % len(kinds)](data[1:]) if data else None


def a_listing(data: bytes) -> object:
    """A hostile remote's manifest that has its right id, and whatever names: they are the lines."""
    names = data.decode(errors="replace").split("\n")
    tree = {name: manifest.FileEntry("0" * 64, len(name)) for name in names}
    found = hostile.read_manifest(manifest.manifest(tree, _MADE).text().encode())
    for name in found.tree:
        assert (FOLDER / "c" / name).resolve().is_relative_to(FOLDER / "c"), name
    return found


def a_sealed_file(data: bytes) -> object:
    store = LocalStore(FOLDER / "vault", "fuzz")
    vault = Vault(store, bytes(32), bytes(SALT))
    stored = vault.stored("runs/x.json")
    at(f"vault/{stored}", data if data[:1] == b"l" else MAGIC + bytes(SALT) + data)
    vault.size("runs/x.json")
    return vault.read("runs/x.json", 1 << 20), b"".join(vault.chunks("runs/x.json", len(data) // 2))


def a_signature(data: bytes) -> object:
    return signatures.parse(data.decode(errors="replace"), "it")


def a_seal(data: bytes) -> object:
    return seal.parse(data, "0" * 64)


def events(data: bytes) -> object:
    found, _ = records.read_events(at("r/events.jsonl", data))
    return records.fold(records.RunRecord("r", FOLDER / "r"), found)


def a_safetensors_header(data: bytes) -> object:
    length = max(len(data) - 4, 0)
    at("s/x.safetensors", data if data[:1] == b"\0" else length.to_bytes(8, "little") + data)
    return headers.of_directory(FOLDER / "s")


def an_index(data: bytes) -> object:
    at(f"i/{headers.INDEX}", data)
    return headers.files(FOLDER / "i")


def a_model_config(data: bytes) -> object:
    file = at("m/config.json", data)
    found = described.read(file)
    described.sizes(file, {"": found})
    return found


def words(data: bytes) -> object:
    """What a command line takes."""
    kinds: list[Callable[[str], object]] = [gate.parse, duration, redacted, lambda text: space.read({"train.x": text})]
    text = data[1:].decode(errors="replace")
    return kinds[data[0] % len(kinds)](text) if data else None


def a_search_space(data: bytes) -> object:
    found = yaml12.parse(data.decode(errors="replace"), "x.yaml").plain()
    return space.read(found) if isinstance(found, dict) else None


def rows(data: bytes) -> object:
    return read_rows("rows.jsonl", DataOptions(), ("text",), cache=at("rows.jsonl", data).parent)


TARGETS: dict[str, Target] = {
    each.__name__: each
    for each in (
        *(a_manifest, a_ref, the_op_log, the_audit_log, a_yaml, a_yaml_text, settings, of_a_remote, a_listing),
        *(
            a_sealed_file,
            a_signature,
            a_seal,
            events,
            a_safetensors_header,
            an_index,
            a_model_config,
            words,
            a_search_space,
        ),
    )
}
SLOW: dict[str, Target] = {"rows": rows}


NASTY: tuple[Any, ...] = (
    *(None, True, "", "x" * 300, "../x", "/x", "a\0b", "\ud800", "refs/heads/a", "0" * 64, [], {}, [[]], {"": 0}),
    *(-1, 0, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, math.inf, -math.inf, math.nan),
)
_DEEP = b"[" * 100_000


def nasty(data: bytes, chance: random.Random) -> bytes:
    """The same lines of JSON but for one value, which is none that anybody expects there; other bytes stay."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    begin = max(lines[at].find(b"{"), 0)
    try:
        value = json.loads(lines[at][begin:])
    except (ValueError, RecursionError):
        return data
    lines[at] = lines[at][:begin] + _changed(value, chance)
    return b"\n".join(lines)


def _changed(value: Any, chance: random.Random) -> bytes:
    if chance.random() < 0.02:
        return _DEEP
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        keys = each if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        places += [(each, key) for key in keys]
        waiting += [each[key] for key in keys]
    if places:
        holder, key = chance.choice(places)
        if isinstance(holder, dict) and chance.random() < 0.3:
            moved = holder.pop(key)
            if chance.random() < 0.5:
                holder[str(chance.choice(NASTY))] = moved
        else:
            holder[key] = chance.choice(NASTY)
    return json.dumps(value).encode()


def seeds(name: str) -> list[bytes]:
    """Something that each target takes, to begin with."""
    entry = {
        "id": "1" * 8,
        "name": "tag a",
        "changes": [{"what": "refs/tags/a", "before": None, "after": "0" * 64}],
        "time": 1.5,
    }
    run = {
        "run": "20261122-104501-train-3f2a",
        "checkpoint": "",
        "tree": {"events.jsonl": {"sha256": "0" * 64, "size": 3}},
    }
    record = audit.Record(1, 1.5, "me", "here", "tag a", "llmos tag a", "", audit.NOTHING).sealed()
    started = {
        "event": "started",
        "at": 1.5,
        "run": "r",
        "operation": "train",
        "pid": 1,
        "pid_started": 1.5,
        "host": "h",
        "base": "main",
    }
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    written = manifest.manifest({"a/b": manifest.FileEntry("0" * 64, 3)}, _MADE).text().encode()
    pipeline = b"format: 1\nremotes: {origin: {url: /x}}\npipeline:\n  a: {verb: train, set: {train.max_steps: 5}}\n  b:\n    sh: x\n    inputs: [y]\n    rev: a\n    foreach: {c: [1, 2]}\n"
    small = [
        written,
        json.dumps({"ref": "refs/tags/a", "value": None}).encode(),
        json.dumps(run).encode(),
        b"{}",
        layout.format_text(),
    ]
    backup = {
        "backup": "20261122-104501-000000",
        "workspace": "w",
        "host": "h",
        "checkpoints": [],
        "tree": {"sha256": "0" * 64, "size": 1},
    }
    small += [
        json.dumps(backup).encode(),
        json.dumps(started).encode() + b'\n{"event": "ended", "at": 2.5, "status": "done"}\n',
    ]
    space_ = b"train.learning_rate: {low: 1e-4, high: 1e-2, log: true}\ntrain.batch_size: [4, 8]\n"
    return {
        "a_manifest": [written],
        "a_ref": [b"ref: refs/heads/main\n", b"0" * 64],
        "the_op_log": [json.dumps(entry).encode() + b"\n"],
        "the_audit_log": [json.dumps(record.__dict__, sort_keys=True).encode() + b"\n\0" + json.dumps({"number": 1, "hash": record.hash}).encode()],
        "a_yaml": [pipeline, space_],
        "a_yaml_text": [pipeline, b"a: [1, {b: |\n  x\n}]", b"a: &x 1\nb: *x\n"],
        "settings": [pipeline],
        "of_a_remote": [bytes([number]) + each for number, each in enumerate(small)],
        "a_listing": [b"config.json\nmodel-1.safetensors\na/b", b"../a", b"/etc/passwd", b"A\na"],
        "a_sealed_file": [b"x" * 40, b"l" + MAGIC],
        "a_signature": [b'{"verificationMaterial": {"publicKey": {"hint": "x"}}, "dsseEnvelope": {"payload": "e30="}}'],
        "a_seal": [seal.Seal("0" * 64, "1" * 64, "2" * 64, {"a": manifest.FileEntry("3" * 64, 5)}).text().encode()],
        "events": [small[-1]],
        "a_safetensors_header": [text + bytes(4), b"\0" + bytes(7), struct.pack("<Q", 2**63) + b"{}"],
        "a_model_config": [b'{"hidden_size": 8, "num_hidden_layers": 2, "id2label": {"0": "a"}}'],
        "an_index": [b'{"weight_map": {"a": "x.safetensors"}}'],
        "words": [b"\0perplexity <= 1.05 * base", b"\x0130d", b"\x02x=https://u:p@h/?token=abc"],
        "a_search_space": [space_],
        "rows": [b'{"text": "a"}\n{"text": "b"}\n'],
    }[name]  # fmt: skip
