"""No option is a lie: each verb is run with every key set, and each key is either read by the work or reported as of no effect."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llmos_cli import catalog
from llmos_cli.core import config
from llmos_cli.core.config import Resolved
from llmos_cli.core.section import Section
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.init import init
from llmos_cli.operations.sign import sign
from llmos_cli.operations.tag import tag
from tests.conftest import TINY
from tests.operations.keys import every, tree

TEXTS = [f"the {animal} {verb} on the {place}" for animal in ("cat", "dog", "owl", "fox") for verb in ("sat", "lay", "ran", "hid") for place in ("mat", "log", "roof", "wall", "hill")]  # fmt: skip
ROWS = {
    "causal-lm": [{"body": " ".join(TEXTS)} for _ in range(3)] + [{"body": text} for text in TEXTS],
    "text-classification": [{"body": text, "kind": text.split()[1]} for text in TEXTS],
    "token-classification": [{"words": text.split(), "marks": [word[0] for word in text.split()]} for text in TEXTS],
}
METRICS = {"image-classification": "accuracy", "text-classification": "accuracy", "token-classification": "macro_f1"}

APART = {
    "model.module": "an architecture of one's own stands in the place of model.arch",
    "compress.calibration": "it takes a source of the task's own kind, apart from what is evaluated",
    "prune.calibration": "it takes a source of the task's own kind, apart from what is evaluated",
    "quantize.calibration": "it takes a source of the task's own kind, apart from what is evaluated",
    "quantize.rotation": "not every architecture can be rotated",
    "eval.folds": "cross-validation trains anew, on the checkpoint's own data",
    "train.teacher_top": "neither augmented samples nor hidden states are cached",
    "train.hidden_weight": "not every model tells its hidden states, and not beside train.teacher_top",
    "data.tokenizer.type": "with a teacher the tokenizer is the teacher's",
}
"""Keys that are set in a run of their own, or left out where another one decides."""


class Reads:
    """Which keys of which sections the work looked up by name while a command ran, whoever held the section by then.

    What only carries options from place to place (copying a section reads all of it) does not count as reading them.
    """

    CARRIERS = ("core/section.py", "core/config.py", "operations/config.py", "options/", "pydantic/", "tests/")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: dict[int, set[str]] = defaultdict(set)
        self.kept: list[Any] = []
        self.resolved: list[Resolved] = []
        look, resolve = Section.__getattribute__, config.resolve

        def looked(section: Section, name: str) -> Any:
            value = look(section, name)
            if not name.startswith("_") and name in type(section).model_fields:
                self._note(section, name, sys._getframe(1))
            return value

        def resolving(*args: Any, **given: Any) -> Resolved:
            self.resolved.append(resolve(*args, **given))
            return self.resolved[-1]

        patch.setattr(Section, "__getattribute__", looked)
        patch.setattr(config, "resolve", resolving)

    def _note(self, section: Section, name: str, frame: Any) -> None:
        file = frame.f_code.co_filename
        by_name = name in frame.f_code.co_names or file.endswith("data/columns.py")  # whose key is a column's kind
        if by_name and not any(carrier in file for carrier in self.CARRIERS):
            self.names[id(section._read)].add(name)
            self.kept.append(section._read)

    def read(self, verb: str, key: str) -> bool:
        section = next(resolved.config for resolved in self.resolved if resolved.verb == verb)
        *parents, name = key.split(".")
        for parent in parents:
            section = section.__dict__[parent] if parent in section.__dict__ else section._of_methods.get(parent)
            if section is None:
                return False  # a method that was not chosen
        if name not in type(section).model_fields:
            return name in section._read  # a width of a model, asked for with all others
        return name in self.names[id(section._read)]


@pytest.fixture
def home(tmp_path: Path, new_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch, llmos: Any) -> Any:
    """`home("causal-lm")` is a workspace with data of its own and a checkpoint `base`."""

    def make(template: str) -> Workspace:
        ws = new_workspace(tmp_path / "w", template)
        monkeypatch.chdir(ws.root)
        if template in ROWS:
            write_rows(ws.root, ROWS[template])
        (ws.root / "keys.txt").write_text("a-key\n")
        (ws.root / "keys.txt").chmod(0o600)
        ran = llmos("train", "-q", *(data_of(template)))
        assert ran.code == 0, ran.err
        tag(ws, "base")
        return ws

    return make


def write_rows(root: Path, rows: list[dict[str, Any]]) -> None:
    for name, some in (("rows.jsonl", rows), ("held.jsonl", rows[::5])):
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in some))


def data_of(template: str) -> Iterator[str]:
    """What reads the rows at all."""
    if template in ROWS:
        columns = {"text": "body", "label": "kind", "tokens": "words", "tags": "marks"}
        for key, value in {"source": "rows.jsonl", "columns": json.dumps(columns)}.items():
            yield from ("-s", f"data.{key}={value}")


def written(keys: Mapping[str, Any], root: Path) -> str:
    (root / "every.yaml").write_text(json.dumps(tree(keys)))
    return str(root / "every.yaml")


def reported(err: str) -> set[str]:
    return set(re.findall(r"^warning: (\S+) \(.*\) was set and had no effect$", err, re.MULTILINE))


def judge(verb: str, keys: Mapping[str, Any], reads: Reads, told: set[str]) -> None:
    """Each key is in exactly one of the two; of a method that was not chosen, all keys are told by its name."""
    unread = {key for key in keys if key in told or any(key.startswith(f"{name}.") for name in told)}
    read = {key for key in keys if reads.read(verb, key)}
    assert read & unread == set(), "read, and reported as of no effect"
    assert set(keys) - read - unread == set(), "neither read nor reported"


def run(verb: str, keys: dict[str, Any], ws: Workspace, llmos: Any, *words: str) -> tuple[Reads, str]:
    if keys.get("data.task") not in (None, *ROWS):  # images do not stand in a file of lines
        keys |= {"data.source": "builtin:digits", "data.evaluate": "builtin:digits"}
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(patch)
        ran = llmos(verb, *words, "-c", written(keys, ws.root))
    assert ran.code == 0, ran.err
    return reads, ran.err


TRAININGS = [("causal-lm", name) for name in catalog.methods("train")] + [(name, "adamw") for name in METRICS]
NO_BLOCKS, NO_TEXT = "train.gradient_checkpointing", "data.mask_pii"


@pytest.mark.parametrize(("template", "optimizer"), TRAININGS)
def test_train(template, optimizer, home, llmos):
    ws = home(template)
    keys = {key: value for key, value in every("train", template, optimizer).items() if key not in APART}
    if template == "image-classification":
        for key in (NO_BLOCKS, NO_TEXT):
            refused = llmos("train", "-q", "-s", f"{key}=true")
            assert refused.code == 2 and key in refused.err
            del keys[key]
    reads, err = run("train", keys, ws, llmos)
    judge("train", keys, reads, reported(err))
    built = json.loads((ws.checkpoint().path / "config.json").read_text())
    widths = {key: value for key, value in keys.items() if key.removeprefix("model.") in built and key != "model.dtype"}
    assert all(built[key.removeprefix("model.")] == value for key, value in widths.items())


CUTS = {"prune.pattern": "it cuts, and zeroes nothing", "prune.allocation": "it has no zeros to share out"}
HIDDEN = "the norms of this model subtract the mean over the stream"
CONTRADICTING = {
    "fp8": {"heal.codes": "floats are not learnt code by code"},
    "fisher": {"prune.allocation": "a pattern says by itself how many stay"},
    "movement": {"prune.pattern": "there would be nothing to share out"},
    "shape": {**CUTS, "prune.shape.hidden": HIDDEN},
    "magnitude": {"prune.allocation": "a pattern says by itself how many stay"},
    "sparsegpt": {"prune.pattern": "there would be nothing to share out"},
    "wanda": {"prune.allocation": "a pattern says by itself how many stay"},
    "width": {**CUTS, "prune.width.hidden": HIDDEN},
}
"""Keys that a method refuses beside the others: exit 2, which other tests hold."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "method"),
    # depth: this model has one block, and none would be left.
    [(verb, name) for verb in ("prune", "quantize") for name in catalog.methods(verb) if name != "depth"],
)
def test_compression(verb, method, home, llmos):
    ws = home("text-classification")
    keys = {key: value for key, value in every(verb, "text-classification", method).items() if key not in APART}
    for key in CONTRADICTING.get(method, {}):
        keys.pop(key)
    if method in ("shape", "width"):
        keys["prune.sparsity"] = 0.1  # of all parameters, most of which are embeddings here
    if hasattr(catalog.method(verb, method).load(), "BITS"):
        keys["quantize.symmetric"] = True  # there is no other form of its codes
    elif verb == "quantize":
        keys.pop("quantize.embeddings")  # refused beside zero points
    reads, err = run(verb, keys, ws, llmos)
    judge(verb, keys, reads, reported(err))


@pytest.mark.slow
def test_compress(home, llmos):
    ws = home("text-classification")
    others = {f"compress.target_{kind}" for kind in ("ratio", "latency", "kl")}
    every_key = every("compress", "text-classification")
    keys = {key: value for key, value in every_key.items() if key not in {*APART, *others}}
    reads, err = run("compress", keys, ws, llmos)
    judge("compress", keys, reads, reported(err))


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("template", ["causal-lm", "image-classification"])
def test_eval(template, folds, home, llmos):
    ws = home(template)
    keys = every("eval", template)
    if not folds:
        del keys["eval.folds"]
    if template != "causal-lm":
        del keys["eval.kv_cache"]  # only language models have one
        del keys[NO_TEXT]  # refused, as it is in training
    reads, err = run("eval", keys, ws, llmos)
    judge("eval", keys, reads, reported(err))


@pytest.mark.slow
def test_tune(home, llmos):
    ws = home("text-classification")
    (ws.configs / "train.yaml").write_text(TINY["text-classification"])
    keys = every("tune", "text-classification", "nsga2")
    reads, err = run("tune", keys, ws, llmos)
    judge("tune", keys, reads, reported(err))


@pytest.mark.slow
def test_deploy(home, llmos):
    ws = home("causal-lm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = every("deploy", "causal-lm") | {"deploy.port": port}
    _sign(ws)
    stopping = threading.Thread(target=stop_when_ready, args=(f"http://127.0.0.1:{port}/ready",))
    stopping.start()
    reads, err = run("deploy", keys, ws, llmos)
    stopping.join()
    judge("deploy", keys, reads, reported(err))


@pytest.mark.slow
@pytest.mark.parametrize("template", TINY)
def test_what_is_shipped_never_warns_on_a_plain_command(template, tmp_path, monkeypatch, llmos):
    """The files carry options for `--heal` too, which a command without it does not read."""
    init(tmp_path / "w", template)
    monkeypatch.chdir(tmp_path / "w")
    short = ("-s", "train.max_steps=1", "-s", "data.max_samples=64", "-s", "data.max_eval_samples=16")
    for words in (("train", *short), ("prune",), ("quantize",), ("eval", "-s", "eval.latency=false")):
        ran = llmos(*words, "-q")
        assert (ran.code, "had no effect" in ran.err) == (0, False), ran.err


@pytest.mark.slow
def test_a_wish_for_healing_without_healing_is_told(home, llmos):
    home("image-classification")
    ran = llmos("prune", "-q", "-s", "heal.learning_rate=0.0001")
    assert reported(ran.err) == {"heal.learning_rate"}


def _sign(ws: Workspace) -> None:
    """With the key that `deploy.require_signature` names the public half of."""
    key, encoding = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (ws.root / "key.pem").write_bytes(key.private_bytes(encoding, *form))
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    (ws.root / "public.pem").write_bytes(public)
    sign(ws, key=ws.root / "key.pem")


def stop_when_ready(url: str) -> None:
    for _ in range(600):
        try:
            if urllib.request.urlopen(url, timeout=5).status == 200:
                break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
