"""GGUF files run by llama.cpp, which shares no code with what wrote them: the same likeliest tokens, the same log-probabilities."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_cli.core.workspace import Workspace
from llmos_cli.models import gguf_file
from llmos_cli.models.load import load
from llmos_cli.models.quantized import write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import make, nearest, quantize_all
from tests.operations.test_import_export import tokenized

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the tool xllamacpp (a llama.cpp)"),
]
WIDE = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
}
PROMPT = [5, 100, 17, 280, 44, 3, 9, 200]
TOP = 8
READER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 64, 1, False
params.cpuparams.n_threads = 1
params.no_extra_bufts = True  # repacked kernels crash on some processors with AMX (llama.cpp#20824)
server = xllamacpp.Server(params)
answer = server.handle_completions({"prompt": json.loads(sys.argv[2]), "max_tokens": 1, "logprobs": 8, "temperature": 0})
print("ANSWER", json.dumps(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]))
"""


def theirs(file: Path) -> dict[int, float]:
    command = [sys.executable, "-c", READER, str(file), json.dumps(PROMPT)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = next(line for line in ended.stdout.splitlines() if line.startswith("ANSWER "))
    return {each["id"]: each["logprob"] for each in json.loads(told.removeprefix("ANSWER "))}


def ours(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([PROMPT])).logits[0, -1].float(), -1)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for blocks of 256, and sharp: from a random model all tokens are about equally likely."""
    directory = tmp_path_factory.mktemp("hub") / "wide"
    model = make("llama", "causal-lm", WIDE)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(12)
    save(model, directory)
    tokenized(directory)
    return directory


def check(file: Path, model: Any, tolerance: float) -> None:
    expected, found = ours(model), theirs(file)
    assert len(found) == TOP
    assert expected.argmax().item() in found
    for token, logprob in found.items():
        assert abs(expected[token].item() - logprob) < tolerance, (token, expected[token].item(), logprob)


@pytest.mark.parametrize("kind", list(gguf_file.TYPES))
def test_every_type_says_what_our_reader_says(
    workspace: Workspace, upstream: Path, llmos: Any, tmp_path: Path, kind: str
) -> None:
    """llama.cpp rounds the inputs of quantized matrices to 8 bits, and caches keys in fp16: hence a tolerance."""
    assert llmos("import", upstream).code == 0
    ran = llmos("export", "-o", tmp_path / "m.gguf", "--format", "gguf", "--type", kind, "--json")
    assert ran.code == 0, ran.err
    check(tmp_path / "m.gguf", gguf_file.read(tmp_path / "m.gguf"), 0.01 if kind in ("float32", "float16") else 0.08)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 128)])
def test_a_quantized_checkpoint_answers_there_as_here(
    workspace: Workspace, upstream: Path, llmos: Any, tmp_path: Path, bits: int, group_size: int
) -> None:
    codes = quantize_all(load(upstream), lambda name, weight: nearest(weight, bits, group_size))
    write_quantized(tmp_path / "q", upstream, codes)
    assert llmos("import", tmp_path / "q").code == 0
    ran = llmos("export", "-o", tmp_path / "m.gguf", "--format", "gguf", "--json")
    assert ran.code == 0, ran.err
    assert f"{len(codes)} of {len(codes)} quantized matrices keep their codes" in ran.json["notes"]
    check(tmp_path / "m.gguf", load(workspace.checkpoint("HEAD").path), 0.08)
