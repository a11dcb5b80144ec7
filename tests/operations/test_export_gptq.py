"""The GPTQ layout unpacked bit by bit, by a reader that shares nothing with the writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from llmos_cli.core.workspace import Workspace
from llmos_cli.models.load import load
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import make, nearest, quantize_all
from tests.operations.test_import_export import tokenized


def slowly(words: list[int], bits: int, count: int) -> list[int]:
    """Codes from a row of int32 words: one long number, cut from its low end."""
    number = sum((word & 0xFFFFFFFF) << (32 * index) for index, word in enumerate(words))
    return [(number >> (bits * index)) & ((1 << bits) - 1) for index in range(count)]


def dense(tensors: dict[str, Tensor], layer: str, bits: int, shift: int = 1) -> Tensor:
    """[O, I], by the layout's description alone; version 2 has no shift."""
    qweight, qzeros, scales, g_idx = (tensors[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx"))
    assert (qweight.dtype, qzeros.dtype, scales.dtype, g_idx.dtype) == (
        torch.int32,
        torch.int32,
        torch.float16,
        torch.int32,
    )
    inputs, outputs = len(g_idx), qweight.shape[1]
    zeros = [slowly(row, bits, outputs) for row in qzeros.tolist()]
    columns = [slowly(qweight[:, output].tolist(), bits, inputs) for output in range(outputs)]
    scale, group = scales.float().tolist(), g_idx.tolist()
    return torch.tensor(
        [
            [(columns[o][i] - (zeros[group[i]][o] + shift)) * scale[group[i]][o] for i in range(inputs)]
            for o in range(outputs)
        ]
    )


def quantized(llmos: Any, tmp_path: Path, of: Any) -> dict[str, Quantized]:
    model = make("llama", "causal-lm")
    save(model, tmp_path / "dense", dtype=torch.bfloat16)
    tokenized(tmp_path / "dense")
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    codes = quantize_all(load(tmp_path / "dense"), of)
    write_quantized(tmp_path / "q", tmp_path / "dense", codes)
    assert llmos("import", tmp_path / "q").code == 0
    return codes


def read(directory: Path) -> dict[str, Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (3, 64), (8, -1), (2, 32)])
def test_unpacked_by_hand_it_is_the_checkpoint(
    workspace: Workspace, llmos: Any, tmp_path: Path, bits: int, group_size: int
) -> None:
    codes = quantized(llmos, tmp_path, lambda name, w: nearest(w, bits, group_size, dtype=torch.bfloat16))
    out = tmp_path / "gptq"
    ran = llmos("export", "-o", out, "--format", "gptq", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["difference"] < 1e-3
    tensors = read(out)
    for layer in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        expected = codes[layer]
        wide = Quantized(expected.codes, expected.scales_OG.float(), bits, group_size).dense()
        assert torch.equal(dense(tensors, layer, bits), wide)
    described = json.loads((out / "quantize_config.json").read_text())
    assert described == json.loads((out / "config.json").read_text())["quantization_config"]
    assert (described["bits"], described["group_size"], described["sym"]) == (bits, group_size, True)
    assert (described["quant_method"], described["checkpoint_format"]) == ("gptq", "gptq")
    assert (described["desc_act"], "dynamic" in described) == (False, False)
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|end|>"
    assert (out / "README.md").is_file()
    assert tensors["model.norm.weight"].dtype == torch.float16
    assert not any(name.endswith(("_packed", "_scale")) for name in tensors)


def test_zero_points_are_the_second_version(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """The lowest one among them, which version 1 cannot say."""

    def shifted(name: str, weight: Tensor) -> Quantized:
        found = nearest(weight, 4, 32, asymmetric=True)
        zeros_OG = found.zeros_OG.clone()  # type: ignore[union-attr]
        zeros_OG[0, 0] = -8
        return Quantized(found.codes, found.scales_OG.to(torch.bfloat16), 4, 32, zeros_OG)

    codes = quantized(llmos, tmp_path, shifted)
    ran = llmos("export", "-o", tmp_path / "gptq", "--format", "gptq", "--json")
    assert (ran.code, ran.json["difference"] < 1e-3) == (0, True)
    assert any("gptq_v2" in note for note in ran.json["notes"])
    layer = "model.layers.0.mlp.up_proj"
    expected = codes[layer]
    wide = Quantized(expected.codes, expected.scales_OG.float(), 4, 32, expected.zeros_OG).dense()
    torch.testing.assert_close(dense(read(tmp_path / "gptq"), layer, 4, shift=0), wide, rtol=1e-6, atol=0)
    described = json.loads((tmp_path / "gptq" / "quantize_config.json").read_text())
    assert (described["sym"], described["checkpoint_format"]) == (False, "gptq_v2")


def test_layers_that_differ_are_named(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    codes = quantized(llmos, tmp_path, lambda name, w: nearest(w, 8 if "down" in name else 4, 32, dtype=torch.bfloat16))
    assert llmos("export", "-o", tmp_path / "gptq", "--format", "gptq").code == 0
    described = json.loads((tmp_path / "gptq" / "quantize_config.json").read_text())
    assert described["dynamic"] == {
        rf"+:^model\.layers\.{layer}\.mlp\.down_proj$": {"bits": 8, "group_size": 32} for layer in range(2)
    }
    layer = "model.layers.1.mlp.down_proj"
    wide = Quantized(codes[layer].codes, codes[layer].scales_OG.float(), 8, 32).dense()
    assert torch.equal(dense(read(tmp_path / "gptq"), layer, 8), wide)


def test_what_has_no_words_there_is_refused(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    quantized(llmos, tmp_path, lambda name, w: nearest(w, 5, 32))
    ran = llmos("export", "-o", tmp_path / "x", "--format", "gptq")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: GPTQ has no 5 bits")
    assert llmos("import", tmp_path / "dense").code == 0
    ran = llmos("export", "-o", tmp_path / "x", "--format", "gptq")
    assert (ran.code, "these are dense" in ran.err) == (2, True)
    assert not (tmp_path / "x").exists()
