"""What the tests of serving share: tiny models with their tokenizers, and deployments in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from llmos_cli.core.workspace import Checkpoint, Workspace

VOCABULARY, CONTEXT = 320, 256
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'spin' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{% if m.role == 'swell' %}{{ 'a' * 20000000 }}{% endif %}"
    "{% if m.role not in ['user', 'assistant', 'system', 'swell'] %}{{ raise_exception('no such role') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """Random, with weights large enough that its logits differ clearly."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()


def tiny_tokenizer(chat: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the log " * 20], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


SERVED = 2048
"""Context of the models that are served: long enough for a test to do something while they answer."""


def save_llama(directory: Path, *, chat: bool = False) -> Path:
    """Without an end token: it always says as much as it was asked for."""
    tiny_llama(max_position_embeddings=SERVED, eos_token_id=None).save_pretrained(directory)
    tiny_tokenizer(chat).save_pretrained(directory)
    return directory


def commit(ws: Workspace, fill: Callable[[Path], object], task: str) -> Checkpoint:
    """Make what `fill` writes the workspace's HEAD."""
    from llmos_cli.core.manifest import Made

    made = Made("import", (), {"data": {"task": task}}, {}, {}, 0, "2026-01-01T00:00:00Z")
    with ws.begin("import", config={}) as run, ws.stage() as folder:
        fill(folder)
        return run.commit(folder, made)


def new_workspace(directory: Path, fill: Callable[[Path], object], task: str = "causal-lm") -> Workspace:
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.operations.init import init

    init(directory, task)
    ws = Workspace.find(directory)
    commit(ws, fill, task)
    return ws


@dataclass
class Server:
    """A deployment in a process of its own; `command` are the words that run llmos beside it."""

    url: str
    name: str
    run: str
    process: subprocess.Popen[str]
    workspace: Path

    def wait_ended(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)


def llmos_command(*words: object) -> list[str]:
    return [sys.executable, "-m", "llmos_cli", *map(str, words)]


def environment(home: Path, extra: Mapping[str, str] = {}) -> dict[str, str]:
    own = {"HOME": str(home), "LLMOS_CONFIG_HOME": str(home / "config"), "LLMOS_CACHE_HOME": str(home / "cache")}
    return {**os.environ, **own, "OMP_NUM_THREADS": "1", **extra}


@contextmanager
def deployed(ws: Workspace, home: Path, *words: object, env: Mapping[str, str] = {}) -> Iterator[Server]:
    """`llmos deploy --port 0 WORDS` while the block runs; ended by its pid."""
    errors = home / "stderr.txt"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            llmos_command("deploy", "--port", 0, "--json", *words),
            cwd=ws.root,
            env=environment(home, env),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, errors.read_text()
        said = json.loads(line)
        assert "url" in said, said
        yield Server(said["url"], said["name"], said["run"], process, ws.root)
    finally:
        process.terminate()
        process.wait(30)


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module", autouse=True)
def _warm(warm: None) -> None:
    """The processes of these tests would mostly import torch."""
