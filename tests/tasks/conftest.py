"""Prepared data of every task, tiny, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos_cli import tasks
from llmos_cli.models.build import build
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks.base import Prepared, Task

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ARCHS = {
    "causal-lm": {"arch": "llama", **SMALL},
    "image-classification": {"arch": "mlp", "hidden_size": 16},
    "text-classification": {"arch": "bert", **SMALL},
    "token-classification": {"arch": "lstm", "hidden_size": 8, "embedding_size": 8},
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Task -> what `data.source` says; the user's own files, but for digits."""
    folder = tmp_path_factory.mktemp("sources")
    mails = [{"text": f"{w} {'very ' * (i % 5)}{i * 7919}", "label": w} for i in range(60) for w in ("ham", "spam")]
    (folder / "mails.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mails))
    (folder / "news.conll").write_text("".join(f"Ann{i} B-PER\nLee I-PER\nleft O\n\n" for i in range(80)))
    (folder / "book.txt").write_text("\n\n".join(f"Chapter {i}: all work and no play." for i in range(2000)))
    return {
        "causal-lm": str(folder / "book.txt"),
        "image-classification": "builtin:digits",
        "text-classification": str(folder / "mails.jsonl"),
        "token-classification": str(folder / "news.conll"),
    }


@pytest.fixture(scope="session")
def prepare(sources: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Prepared]:
    """`prepare("causal-lm", sequence_length=16)`."""
    cache = tmp_path_factory.mktemp("cache")

    def run(name: str, *, processor: Path | None = None, relabel: bool = False, **options: Any) -> Prepared:
        chosen = {
            "source": sources[name],
            "sequence_length": 32,
            "test_fraction": 0.2,
            "tokenizer": {"vocab_size": 300},
            **options,
        }
        data = DataOptions.model_validate({"task": name, **chosen})
        model = ModelOptions(**ARCHS[name])
        return tasks.load(name).prepare(data, model, seed=0, cache=cache, processor=processor, relabel=relabel)

    return run


@pytest.fixture(scope="session", params=sorted(ARCHS))
def case(request: pytest.FixtureRequest, prepare: Callable[..., Prepared]) -> tuple[Task, Prepared, Any]:
    """Each task with its data and an untrained model."""
    prepared = prepare(request.param)
    model = build(ModelOptions(**ARCHS[request.param]), request.param, prepared.facts, seed=0)
    return tasks.load(request.param), prepared, model.eval()
