"""Checkpoints to evaluate and compare without training any: a base, a sparser copy, a noisier copy of that."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.workspace import Checkpoint, Workspace

MODELS = {
    "causal-lm": "{arch: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}",
    "image-classification": "{arch: mlp, hidden_size: 16}",
}
CONFIGS = {
    "causal-lm": '{source: "builtin:pydoc", sequence_length: 32, max_samples: 64, max_eval_samples: 8, tokenizer: {vocab_size: 300}}',
    "image-classification": '{source: "builtin:digits", max_samples: 128, max_eval_samples: 64}',
}

Commit = Callable[..., Checkpoint]
Base = Callable[..., Workspace]


def make(ws: Workspace, task: str) -> None:
    (ws.configs / "train.yaml").write_text(
        f"seed: 0\nmodel: {MODELS[task]}\ndata: {CONFIGS[task]}\ntrain: {{max_steps: 2, batch_size: 4}}\n"
    )


def committed(
    ws: Workspace,
    task: str,
    *,
    operation: str = "train",
    parents: tuple[str, ...] = (),
    change: Callable[[Any], None] = lambda model: None,
    sets: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    dtype: Any = None,
) -> Checkpoint:
    """Commit a freshly initialised model (always from the same seed), changed by `change`, as if `operation` had made it."""
    import torch

    from llmos_cli import tasks
    from llmos_cli.core.manifest import Made
    from llmos_cli.models.build import build
    from llmos_cli.models.save import save
    from llmos_cli.operations.config import resolve

    resolved = resolve(ws, "train", flags={"data.task": task, **(sets or {})})
    prepared = tasks.load(task).prepare(resolved.config.data, resolved.config.model, seed=0, cache=ws.cache)
    model = build(resolved.config.model, task, prepared.facts, seed=0)
    with torch.no_grad():
        change(model)
    with ws.begin(operation, config=resolved.mapping, files=files, parents=parents) as run, ws.stage() as staged:
        save(model, staged, processor=prepared.processor, dtype=dtype)
        made = Made(
            operation, parents, resolved.mapping, prepared.fingerprint, {"torch": "2"}, 0, "2026-01-01T00:00:00Z"
        )
        return run.commit(staged, made)


@pytest.fixture(scope="session")
def _lines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    made: dict[str, Workspace] = {}

    def line(task: str) -> Workspace:
        if task not in made:
            made[task] = _line(tmp_path_factory.mktemp(task) / "workspace", task)
        return made[task]

    return line


def _line(directory: Path, task: str) -> Workspace:
    import torch

    from llmos_cli.models.blocks import layers, weights
    from llmos_cli.operations.init import init
    from llmos_cli.operations.tag import tag

    def matrices(model: Any) -> list[Any]:
        return [weight for layer in layers(model).values() for weight in weights(layer).values()]

    def halve(model: Any) -> None:
        for weight in matrices(model):
            weight[:, ::2] = 0

    def shake(model: Any) -> None:
        halve(model)
        for weight in matrices(model):
            weight += 0.05 * torch.sin(torch.arange(weight.numel())).view_as(weight) * (weight != 0)

    init(directory, task)
    ws = Workspace.find(directory)
    make(ws, task)
    base = committed(ws, task)
    tag(ws, "base", base.id)
    pruned = committed(ws, task, operation="prune", parents=(base.id,), change=halve)
    committed(ws, task, operation="quantize", parents=(pruned.id,), change=shake)
    return ws


@pytest.fixture
def line(_lines: Callable[[str], Workspace], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A language model's workspace: `base` <- pruned <- HEAD. Shared: tests may evaluate, not commit."""
    ws = _lines("causal-lm")
    monkeypatch.chdir(ws.root)
    return ws


@pytest.fixture
def digits(_lines: Callable[[str], Workspace], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The same line of an image classifier."""
    ws = _lines("image-classification")
    monkeypatch.chdir(ws.root)
    return ws


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of its own without checkpoints, for a tiny image classifier: what trains fastest."""
    from llmos_cli.operations.init import init

    init(tmp_path / "workspace", "image-classification")
    ws = Workspace.find(tmp_path / "workspace")
    make(ws, "image-classification")
    monkeypatch.chdir(ws.root)
    return ws


ROWS = "data: {task: text-classification, source: rows.csv, sequence_length: 16}\nmodel: {arch: bag}\ntrain: {max_steps: 3}\n"


@pytest.fixture(scope="session")
def _on_rows(tmp_path_factory: pytest.TempPathFactory, new_workspace: Callable[..., Workspace]) -> Path:
    from llmos_cli.operations.config import resolve
    from llmos_cli.operations.train import train

    ws = new_workspace(tmp_path_factory.mktemp("rows") / "workspace", "text-classification")
    (ws.configs / "train.yaml").write_text(ROWS)
    rows = [f"{'good nice fine' if at % 2 else 'bad poor sad'} {at},{at % 2}" for at in range(200)]
    (ws.root / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    train(ws, None, resolve(ws, "train"), emit=lambda event: None)
    return ws.root


@pytest.fixture
def on_rows(_on_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of its own with one training on a file."""
    return copied(_on_rows, tmp_path, monkeypatch)


def copied(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace that stands in `root`, for a test to change; it is the current folder."""
    shutil.copytree(root, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    return Workspace.find()


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured of time here is looked at for what it is of, not for how exact it is."""
    from llmos_cli.methods import turns
    from llmos_cli.models.kernels import choice

    monkeypatch.setattr(turns, "SECONDS", 0.01)
    monkeypatch.setattr(choice, "TURNS", 1)
    monkeypatch.setattr(choice, "BUDGET", 1e-4)


@pytest.fixture(scope="session")
def trained_workspaces(
    new_workspace: Callable[..., Workspace], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The root of a workspace with one trained checkpoint of a template and a `train.yaml`, made once for all tests."""
    from llmos_cli.operations.config import resolve
    from llmos_cli.operations.train import train

    made: dict[str, Path] = {}

    def once(template: str, config: str = "") -> Path:
        key = template + config
        if key not in made:
            ws = new_workspace(tmp_path_factory.mktemp("trained") / "base", template)
            if config:
                (ws.configs / "train.yaml").write_text(config)
            train(ws, None, resolve(ws, "train"), emit=lambda event: None)
            made[key] = ws.root
        return made[key]

    return once


@pytest.fixture
def base(trained_workspaces: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A copy of its own of a workspace with one trained checkpoint, and the current folder in it."""

    def copy(template: str = "causal-lm", config: str = "") -> Workspace:
        shutil.copytree(trained_workspaces(template, config), tmp_path / "workspace", symlinks=True)
        monkeypatch.chdir(tmp_path / "workspace")
        return Workspace.find()

    return copy


@pytest.fixture(scope="module", autouse=True)
def _warm(warm: None) -> None:
    """The processes of these tests would mostly import torch."""
