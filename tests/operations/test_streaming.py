"""Compressing block by block gives the files that compressing the whole model in memory gives, in one block's memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_cli.core.records import EVENTS, RunRecord, read_events
from llmos_cli.core.view import size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.events import ignore
from llmos_cli.models import headers
from llmos_cli.models.activations import Spill
from llmos_cli.models.load import load
from llmos_cli.models.shelf import Shelf
from llmos_cli.operations import prune, quantize
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.coding import coding, rounding
from llmos_cli.operations.compression.form import form_of
from llmos_cli.operations.compression.keeping import keeping
from llmos_cli.operations.compression.resuming import same_calibration
from llmos_cli.operations.compression.subject import calibration, method, subject
from llmos_cli.operations.compression.sweep import sweep
from llmos_cli.operations.compression.zeroing import zeroing
from llmos_cli.operations.config import resolve
from llmos_cli.operations.eval import Exam
from llmos_cli.operations.training import state
from llmos_cli.tasks import scoring
from tests.operations.conftest import committed

TEXT = (
    '{source: "builtin:pydoc", sequence_length: 32, max_samples: 64, max_eval_samples: 8, tokenizer: {vocab_size: 300}}'
)
LABELLED = (
    '{source: "builtin:%s", sequence_length: 32, max_samples: 32, max_eval_samples: 8, tokenizer: {vocab_size: 300}}'
)
WIDTHS = "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 2"
MODELS = {
    "llama": ("causal-lm", f"{{arch: llama, {WIDTHS}}}", TEXT),
    "bert": ("text-classification", f"{{arch: bert, {WIDTHS}}}", LABELLED % "docstrings"),
    "lstm": (
        "token-classification", "{arch: lstm, hidden_size: 16, embedding_size: 16, num_hidden_layers: 2}",
        LABELLED % "pytokens",
    ),
    "cnn": ("image-classification", "{arch: cnn}", '{source: "builtin:digits", max_samples: 64, max_eval_samples: 8}'),
    "mlp": ("image-classification", "{arch: mlp}", '{source: "builtin:digits", max_samples: 64, max_eval_samples: 8}'),
}  # fmt: skip
WAYS = [
    ("prune", {"prune.method": "sparsegpt"}),
    ("prune", {"prune.method": "wanda", "prune.ignore": ["*.1.*"]}),
    ("prune", {"prune.method": "magnitude"}),
    ("quantize", {"quantize.method": "gptq", "quantize.bits": 3, "quantize.group_size": 32}),
    ("quantize", {"quantize.method": "w8a8"}),
    ("quantize", {"quantize.method": "fp8"}),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """A workspace with one checkpoint, stored in bfloat16, of each kind of model."""
    known: dict[str, Workspace] = {}

    def workspace(kind: str) -> Workspace:
        if kind not in known:
            from llmos_cli.operations.init import init

            task, model, data = MODELS[kind]
            init(tmp_path_factory.mktemp(kind) / "workspace", task)
            known[kind] = Workspace.find(tmp_path_factory.getbasetemp() / f"{kind}0" / "workspace")
            (known[kind].configs / "train.yaml").write_text(f"seed: 0\nmodel: {model}\ndata: {data}\n")
            committed(known[kind], task, dtype=torch.bfloat16)
        return known[kind]

    return workspace


@pytest.mark.parametrize(("verb", "flags"), WAYS, ids=[f"{verb}-{flags[f'{verb}.method']}" for verb, flags in WAYS])
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_bytes_as_in_memory(
    made: Callable[[str], Workspace],
    kind: str,
    verb: str,
    flags: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ws = made(kind)
    monkeypatch.chdir(ws.root)
    whole = compressed(ws, verb, flags, tmp_path / "whole", streams=False)
    with one_block_at_a_time(monkeypatch):
        streamed = compressed(ws, verb, flags, tmp_path / "streamed", streams=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "out").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "streamed" / "out").iterdir()}
    assert torch.equal(streamed[0], whole[0]), "the witness answers as the model in memory does"
    assert streamed[1] == whole[1]
    model = load(tmp_path / "streamed" / "out")
    reread = scoring.forward(model, streamed[2]).float()
    assert (reread - streamed[0]).abs().max() < 1e-5, "what the files say is what was computed"


@contextmanager
def one_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where two blocks are in memory."""
    real = Shelf.held
    now: list[int] = []

    @contextmanager
    def held(shelf: Shelf, index: int) -> Iterator[None]:
        now.append(index)
        assert len([each for each in now if each < len(shelf.stack)]) <= 1
        with real(shelf, index):
            yield
        now.remove(index)

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "held", held)
        yield


def compressed(
    ws: Workspace,
    verb: str,
    flags: dict[str, Any],
    folder: Path,
    *,
    streams: bool,
    rewritten: Callable[[Exam], Path] | None = None,
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """The files in `folder`/out, what the result in memory answers, what was done to each matrix, and what was asked."""
    resolved = resolve(ws, verb, flags={**flags, f"{verb}.calibration_samples": 20})
    options = getattr(resolved.config, verb)
    module, own = method(verb, options)
    parent = subject(
        ws, ws.checkpoint("HEAD"), resolved, options.ignore, streams=streams, rewritten=rewritten, emit=ignore
    )
    assert (parent.shelf is not None) == streams
    batches = calibration(parent, 20, module.NEEDS, seed=0).batches
    coded: dict[str, Coded] = {}
    (folder / "spilled").mkdir(parents=True)
    spill = Spill(0, folder / "spilled") if streams else Spill()
    with keeping(
        parent, folder / "state", coded, rounds_inputs=rounding(module) if verb == "quantize" else None
    ) as kept:
        if verb == "prune":
            compress = zeroing(parent, module, own, prune.target_of(resolved))
        else:
            compress = coding(parent, module, own, form_of(resolved, module), coded)
        sweep(
            parent, batches, compress, module.NEEDS, keeper=kept, changes=kept.changes, spill=spill, stage=verb, emit=ignore
        )  # fmt: skip
        if verb == "prune":
            prune.write_pruned(kept, folder / "out")
        else:
            quantize.write_codes(ws, kept, coded, module, folder / "out")
        return kept.logits(), kept.changes, parent.asked


KILLED = """\
import os, signal, sys
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import Progress
from llmos_cli.operations import prune, quantize
from llmos_cli.operations.config import resolve

def die(event):
    if isinstance(event, Progress) and event.stage == sys.argv[1] and event.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

ws = Workspace.find()
operation = {"prune": prune.prune, "quantize": quantize.quantize}[sys.argv[1]]
operation(ws, "HEAD", resolve(ws, sys.argv[1], flags={f"{sys.argv[1]}.method": sys.argv[2]}), emit=die)
"""


def cut_off(origin: Workspace, script: str, verb: str, name: str) -> tuple[Workspace, str, RunRecord]:
    """A copy of the workspace in this folder, which becomes the current one, where `script` killed itself; its tip, and the run."""
    shutil.copytree(origin.root, "workspace", symlinks=True)
    os.chdir("workspace")
    ws = Workspace.find()
    killed = subprocess.run([sys.executable, "-c", script, verb, name], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    return ws, ws.resolve(), ws.runs.list()[-1]


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("prune", "sparsegpt"),
        ("quantize", "gptq"),
        *(
            pytest.param("quantize", name, marks=pytest.mark.slow)
            for name in ("rtn", "w8a8", "awq", "smoothquant", "autoround")
        ),
    ],
)
def test_a_killed_run_goes_on_at_the_block_where_it_stopped_to_the_same_bits(
    made: Callable[[str], Workspace], verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llmos: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    ws, base, run = cut_off(made("llama"), KILLED, verb, name)
    assert sorted(path.stem for path in (run.path / "state").glob("block-*")) == ["block-00000", "block-00001"]

    refused = llmos(verb, "--resume", "--method", name)
    assert refused.code == 2 and "as it was begun" in refused.err
    resumed = llmos(verb, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["run"] == run.id and resumed.json["changed"] == 21
    layers = [event["name"] for event in read_events(run.path / EVENTS)[0] if event["event"] == "layer"]
    assert len(layers) == len(set(layers)) == 21, "no layer was compressed twice"
    assert not (run.path / "state").exists()

    llmos("branch", "-f", "again", base)
    llmos("checkout", base)
    whole = llmos(verb, "--method", name, "--json")
    assert whole.code == 0, whole.err
    manifests = [ws.manifest(made.json["checkpoint"]) for made in (resumed, whole)]
    assert manifests[0].tree == manifests[1].tree
    assert manifests[0].made.config == manifests[1].made.config
    assert manifests[0].made.config[verb]["precision"] in ("float32", "bfloat16"), "what auto chose, for who repeats it"
    again = llmos(verb, "--resume")
    assert again.code == 4 and "was interrupted" in again.err


KILLED_HEALING = """\
import os, signal, sys
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import prune, quantize
from llmos_cli.operations.config import resolve
from llmos_cli.operations.training import state

saved, save = [], state.save

def save_and_die(*where, **what):
    save(*where, **what)
    saved.append(what["position"].step)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

state.save = save_and_die
ws, verb, name = Workspace.find(), sys.argv[1], sys.argv[2]
operation = {"prune": prune.prune, "quantize": quantize.quantize}[verb]
operation(ws, "HEAD", resolve(ws, verb, flags={f"{verb}.method": name, f"{verb}.heal": 20}), emit=lambda event: None)
"""


@pytest.mark.parametrize(
    ("verb", "name"), [("quantize", "rtn"), pytest.param("prune", "wanda", marks=pytest.mark.slow),
                       pytest.param("prune", "width", marks=pytest.mark.slow)],
)  # fmt: skip
def test_healing_that_was_killed_goes_on_from_its_last_state_to_the_same_bits(
    made: Callable[[str], Workspace], verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llmos: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    ws, base, run = cut_off(made("llama"), KILLED_HEALING, verb, name)
    assert state.step(run.path / "state" / "heal") == 6

    resumed = llmos(verb, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["run"] == run.id and resumed.json["healed_steps"] == 20
    assert not (run.path / "state").exists()
    llmos("branch", "-f", "again", base)
    llmos("checkout", base)
    whole = llmos(verb, "--method", name, "--heal", "20", "--json")
    assert whole.code == 0, whole.err
    trees = [ws.manifest(made.json["checkpoint"]).tree for made in (resumed, whole)]
    assert trees[0] == trees[1]


def test_what_its_gate_refused_keeps_nothing_to_resume(
    made: Callable[[str], Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llmos: Any
) -> None:
    shutil.copytree(made("llama").root, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    refused = llmos("quantize", "--method", "rtn", "--max-kl", "0")
    assert refused.code == 3
    assert not (Workspace.find().runs.list()[-1].path / "state").exists()
    again = llmos("quantize", "--resume")
    assert again.code == 2 and "refused by its guards" in again.err
    diverged = llmos("quantize", "--method", "rtn", "--heal", "9", "-s", "heal.learning_rate=1e30")
    assert diverged.code == 1 and "lower learning rate" in diverged.err
    assert not (Workspace.find().runs.list()[-1].path / "state").exists()


@pytest.mark.parametrize(
    ("kind", "verb", "name"),
    [("llama", "quantize", "w8a8"), pytest.param("bert", "prune", "wanda", marks=pytest.mark.slow)],
)
def test_a_proof_block_by_block_gives_the_numbers_of_one_with_whole_models(
    made: Callable[[str], Workspace],
    kind: str,
    verb: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    llmos: Any,
) -> None:
    shutil.copytree(made(kind).root, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    base = Workspace.find().resolve()
    whole = llmos(verb, "--method", name, "--json")
    assert whole.code == 0 and not whole.json["proof"]["unmeasured"], whole.err
    llmos("checkout", base)
    with one_block_at_a_time(monkeypatch):
        tight = llmos(verb, "--method", name, "-s", f"{verb}.memory_budget=1e-6", "--json")
    assert tight.code == 0, tight.err
    for side in ("before", "after"):
        for metric, found in tight.json["proof"][side].items():
            assert found == pytest.approx(whole.json["proof"][side][metric], rel=1e-4, abs=1e-6), metric
    parity = tight.json["proof"]["parity"]
    assert (parity["reader"], parity["fresh"]) == ("llmos, block by block", False)
    assert parity["difference"] < 1e-5
    assert "fresh process, were not measured" in tight.json["proof"]["unmeasured"]


@pytest.mark.parametrize(
    ("words", "copies"),
    [
        (("quantize", "--heal", "1", "-s", "quantize.memory_budget=1e-4"), 5),
        (("quantize", "--heal", "1", "-s", "heal.codes=true", "-s", "quantize.memory_budget=1e-4"), 9),
        (("prune", "--heal", "1", "-s", "prune.memory_budget=1e-4"), 5),
        (("prune", "--method", "width", "-s", "prune.memory_budget=1e-4"), 3),
        (("compress", "--target-ratio", "0.5", "-s", "compress.memory_budget=1e-4"), 3),
    ],
)
def test_what_holds_whole_models_says_so_before_it_loads_them(
    made: Callable[[str], Workspace], words: tuple[str, ...], copies: int, llmos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = made("llama")
    monkeypatch.chdir(ws.root)
    needed = size(copies * 4 * headers.parameters(ws.checkpoint("HEAD").path))
    for more in ((), ("--dry-run",)):
        refused = llmos(*words, *more)
        assert refused.code == 2
        assert f"holds whole models in memory, about {needed}, and memory_budget allows 100 kB" in refused.err
    enough = [f"{word.partition('=')[0]}=64" if "memory_budget" in word else word for word in words]
    planned = llmos(*enough, "--dry-run")
    assert planned.code == 0 and f"holds whole models in memory, about {needed} of the " in planned.out, planned.err


@pytest.mark.parametrize("verb", ["prune", "quantize"])
def test_a_dry_run_says_what_a_compression_block_by_block_holds(
    made: Callable[[str], Workspace], verb: str, llmos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = made("llama")
    monkeypatch.chdir(ws.root)
    model = load(ws.checkpoint("HEAD").path)
    block = size(4 * sum(parameter.numel() for parameter in model.model.layers[0].parameters()))
    planned = llmos(verb, "--dry-run", "-s", f"{verb}.memory_budget=0.004", "--json")
    assert f"one block in memory at a time, {block}, embeddings" in planned.json["memory"]
    assert "of activations at most 1.0 MB, the rest on disk" in planned.json["memory"]


def test_a_dry_run_refuses_what_is_quantized_as_the_run_would(base: Any, llmos: Any) -> None:
    base()
    assert llmos("quantize", "--method", "rtn", "-s", "quantize.latency=false", "-q").code == 0
    for words in (("prune",), ("prune", "--method", "width"), ("quantize",), ("compress", "--target-kl", "1")):
        for more in ((), ("--dry-run",)):
            refused = llmos(*words, *more)
            assert refused.code == 2 and "is quantized already" in refused.err


def test_a_run_whose_calibration_data_changed_does_not_go_on(tmp_path: Path) -> None:
    same_calibration(tmp_path, {"samples": 2, "sha256": "a"})
    same_calibration(tmp_path, {"samples": 2, "sha256": "a"})
    with pytest.raises(UsageError, match="not what it was"):
        same_calibration(tmp_path, {"samples": 2, "sha256": "b"})
