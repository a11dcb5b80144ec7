"""`quantize.embeddings`: token embeddings and the head on disk as 8-bit codes, tied or not, and everything that then reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmos_cli.core.workspace import Workspace
from llmos_cli.models import headers
from llmos_cli.models.load import load
from tests.operations.conftest import committed

Base = Callable[..., Workspace]
EMBEDDED = ("-s", "quantize.embeddings=true", "-s", "data.max_eval_samples=4")


def entries(ws: Workspace) -> dict[str, headers.Entry]:
    return headers.of_directory(ws.checkpoint().path)


def test_a_tied_head_shares_the_codes_and_every_reader_knows_them(base: Base, llmos: Any, tmp_path: Any) -> None:
    ws = base()
    before = load(ws.checkpoint().path)
    done = llmos("quantize", "--method", "rtn", "--group-size", "32", *EMBEDDED, "--json")
    stock(done)
    found = entries(ws)
    assert found["model.embed_tokens.weight"].dtype == "I8"
    assert "lm_head.weight" not in found and "lm_head.weight_scale" in found
    near(before, load(ws.checkpoint().path))
    assert headers.parameters(ws.checkpoint().path) == headers.parameters(ws.checkpoint("HEAD~1").path)

    exported = llmos("export", "--format", "gguf", "-o", tmp_path / "m.gguf")
    assert "1 Q8_0" in exported.out and "15 of 15 quantized matrices keep their codes" in exported.out, exported.err
    assert llmos("export", "--format", "gptq", "-o", tmp_path / "gptq").code == 0
    assert headers.of_directory(tmp_path / "gptq")["model.embed_tokens.weight"].dtype == "F16"
    assert llmos("export", "-o", tmp_path / "dense", "--dequantize").code == 0
    assert llmos("diff", "HEAD~1", "HEAD").code == 0
    assert llmos("generate", "-p", "a b", "--max-tokens", "3").code == 0


@pytest.mark.slow
def test_a_head_of_its_own_beside_layers_that_round_their_inputs(base: Base, llmos: Any) -> None:
    ws = base()
    committed(ws, "causal-lm", sets={"model.tie_word_embeddings": False})
    before = load(ws.checkpoint().path)
    stock(llmos("quantize", "--method", "w8a8", *EMBEDDED, "--json"))
    assert entries(ws)["lm_head.weight"].dtype == entries(ws)["model.embed_tokens.weight"].dtype == "I8"
    near(before, load(ws.checkpoint().path))


def stock(done: Any) -> None:
    assert done.code == 0, done.err
    assert done.json["reached"].endswith(", embeddings 8 bits") and not done.json["left_alone"]
    assert done.json["proof"]["parity"]["reader"].startswith("transformers")
    assert done.json["proof"]["parity"]["difference"] < 1e-4
    assert "packed codes only" in done.json["proof"]["conformance"]["refused"][-1]


def near(before: Any, after: Any) -> None:
    """Within half a step of 8 bits, and what bf16 makes of a scale."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        step = before.get_parameter(name).abs().max() / 127.5
        assert (after.get_parameter(name) - before.get_parameter(name)).abs().max() <= 0.6 * step
        assert not torch.equal(after.get_parameter(name), before.get_parameter(name))


@pytest.mark.slow
def test_other_models_of_text(base: Base, llmos: Any, tmp_path: Any) -> None:
    """An LSTM whose head is tied, ours alone to read, and an encoder without such a head."""
    ws = base()
    for arch, task, data in (
        ("{arch: lstm, hidden_size: 32, embedding_size: 32}", "causal-lm", "pydoc"),
        ("{arch: bert, hidden_size: 32, num_hidden_layers: 1}", "text-classification", "docstrings"),
    ):
        (ws.configs / "train.yaml").write_text(
            f"model: {arch}\ndata: {{task: {task}, source: 'builtin:{data}', sequence_length: 32, max_samples: 32, "
            "max_eval_samples: 8, tokenizer: {vocab_size: 300}}\ntrain: {max_steps: 1, batch_size: 4}\n"
        )
        committed(ws, task)
        dense = entries(ws)
        done = llmos("quantize", "--method", "rtn", *EMBEDDED)
        assert done.code == 0, done.err
        codes = [name for name, entry in entries(ws).items() if entry.dtype == "I8" and "embed" in name]
        assert len(codes) == 1 and entries(ws)[codes[0]].shape == dense[codes[0]].shape


@pytest.mark.slow
def test_mixed_bits_masks_and_zero_points_beside_them(base: Base, llmos: Any) -> None:
    ws = base()
    assert llmos("prune", "--method", "magnitude", "--sparsity", "0.5", "-s", "data.max_eval_samples=4").code == 0
    zeros = {name: value == 0 for name, value in load(ws.checkpoint().path).named_parameters() if "proj" in name}
    done = llmos(
        "quantize", "--method", "gptq", "--group-size", "32", *EMBEDDED, "-s", "quantize.layers={'*mlp*': 6}", "--heal", "2", "--json"
    )  # fmt: skip
    assert done.code == 0, done.err
    groups = json.loads((ws.checkpoint().path / "config.json").read_text())["quantization_config"]["config_groups"]
    assert sorted(group["weights"]["num_bits"] for group in groups.values())[-1] == 8
    after = load(ws.checkpoint().path)
    assert all(not after.get_parameter(name)[zero].any() for name, zero in zeros.items())
    assert done.json["proof"]["parity"]["difference"] < 1e-4


@pytest.mark.slow
def test_compress_counts_them(base: Base, llmos: Any) -> None:
    ws = base()
    quick = ("-s", "compress.group_size=32", "-s", "compress.calibration_samples=8", "-s", "compress.probe_samples=4")
    done = llmos(
        "compress", "--target-ratio", "0.45", "-s", "compress.embeddings=true", "-s", "compress.cuts=[0.3]", *quick,
        "-s", "data.max_eval_samples=4", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert entries(ws)["model.embed_tokens.weight"].dtype == "I8"
    assert (
        done.json["result"]["proof"]["bytes_after"]["total"]
        <= 0.45 * done.json["result"]["proof"]["bytes_before"]["total"]
    )
    assert not done.json["result"]["left_alone"]


def test_what_looks_no_tokens_up(base: Base, llmos: Any) -> None:
    base("image-classification")
    refused = llmos("quantize", "--method", "rtn", "-s", "quantize.embeddings=true")
    assert refused.code == 2 and "has no embedding of tokens" in refused.err


def test_a_dry_run_says_so(base: Base, llmos: Any) -> None:
    base()
    ran = llmos("quantize", "--dry-run", "-s", "quantize.embeddings=true")
    assert ran.code == 0 and "output layer" not in ran.out
    assert "model.embed_tokens.weight" in ran.out and "8 bits, groups of 32" in ran.out
