"""A pruned checkpoint exported sparsely is smaller on disk, and imported again it is the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from llmos_cli.core.workspace import Workspace
from llmos_cli.models import blocks, sparse_files
from llmos_cli.models.load import load
from llmos_cli.models.quantized import write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import make, nearest, quantize_all
from tests.operations.test_import_export import tokenized


def half(weight: Tensor) -> None:
    weight.flatten()[torch.rand(weight.numel(), generator=torch.Generator().manual_seed(0)) < 0.5] = 0


def two_of_four(weight: Tensor) -> None:
    rank = weight.abs().flatten(1).unflatten(1, (-1, 4)).argsort(2).argsort(2)
    weight.copy_(weight.where((rank >= 2).flatten(1).view_as(weight), 0))


def pruned(directory: Path, change: Callable[[Tensor], None], arch: str = "llama", task: str = "causal-lm") -> Path:
    model = make(arch, task)
    with torch.no_grad():
        for layer in blocks.layers(model).values():
            for weight in blocks.weights(layer).values():
                if weight[0].numel() % 4 == 0:  # not a first convolution of 1 x 3 x 3
                    change(weight)
    save(model, directory, dtype=torch.bfloat16)
    if arch == "llama":
        tokenized(directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return directory


def there_and_back(workspace: Workspace, llmos: Any, tmp_path: Path) -> Any:
    before = workspace.checkpoint("HEAD").manifest.tree
    ran = llmos("export", "-o", tmp_path / "sparse", "--format", "sparse", "--json")
    assert ran.code == 0, ran.err
    assert not list((tmp_path / "sparse").glob("model*"))
    assert (tmp_path / "sparse" / "README.md").is_file()
    imported = llmos("import", tmp_path / "sparse", "--json")
    assert imported.code == 0, imported.err
    assert imported.json["licence"] == "apache-2.0"
    assert workspace.checkpoint("HEAD").manifest.tree == before
    assert workspace.checkpoint("HEAD~0").id == imported.json["checkpoint"]
    return ran.json


@pytest.mark.parametrize(("change", "kind", "bits"), [(half, "mask", 9), (two_of_four, "2:4", 8.75)])
def test_it_is_smaller_and_the_same(
    workspace: Workspace, llmos: Any, tmp_path: Path, change: Callable[[Tensor], None], kind: str, bits: float
) -> None:
    assert llmos("import", pruned(tmp_path / "upstream", change)).code == 0
    told = there_and_back(workspace, llmos, tmp_path)
    assert told["notes"] == [f"matrices: 14 {kind}; they come back byte for byte: `llmos import` the folder"]
    model = load(workspace.checkpoint("HEAD").path)
    matrices = sum(
        weight.numel() for layer in blocks.layers(model).values() for weight in blocks.weights(layer).values()
    )
    everything = sum(parameter.numel() for parameter in model.parameters())
    expected = matrices * bits / 8 + 2 * (everything - matrices)
    headers = 12_000
    assert expected * 0.99 < told["weights"] < expected * 1.01 + headers


@pytest.mark.parametrize(("change", "share"), [(half, 0.76), (two_of_four, 0.70)])
def test_codes_are_stored_sparsely_too(
    workspace: Workspace, llmos: Any, tmp_path: Path, change: Callable[[Tensor], None], share: float
) -> None:
    """Of four bits and a mask bit, half of the codes: (1 + 2) / 4; of 2:4 patterns (.75 + 2) / 4."""
    dense = pruned(tmp_path / "dense", change)
    codes = quantize_all(load(dense), lambda name, weight: nearest(weight, 4, 32, dtype=torch.bfloat16))
    write_quantized(tmp_path / "q", dense, codes)
    assert llmos("import", tmp_path / "q").code == 0
    packed = sum(code.codes.numel() for code in codes.values()) / 2
    before = sum(file.stat().st_size for file in workspace.checkpoint("HEAD").path.glob("*.safetensors"))
    told = there_and_back(workspace, llmos, tmp_path)
    written = sum(file.stat().st_size for file in (tmp_path / "sparse").glob("*.safetensors"))
    assert before - written > (1 - share) * packed - 4000
    assert "14 " in told["notes"][0]


@pytest.mark.parametrize("change", [half, two_of_four])
def test_convolutions_too(workspace: Workspace, llmos: Any, tmp_path: Path, change: Callable[[Tensor], None]) -> None:
    assert llmos("import", pruned(tmp_path / "upstream", change, "cnn", "image-classification")).code == 0
    there_and_back(workspace, llmos, tmp_path)


def test_a_dense_one_is_told_so(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    assert llmos("import", pruned(tmp_path / "upstream", lambda weight: None)).code == 0
    ran = llmos("export", "-o", tmp_path / "sparse", "--format", "sparse")
    assert (ran.code, "makes nothing of it smaller" in ran.err) == (1, True)
    assert not (tmp_path / "sparse").exists()
    assert llmos("export", "-o", tmp_path / "x", "--format", "sparse", "--type", "q4_0").code == 2


def test_what_was_damaged_or_is_newer_is_not_imported(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    assert llmos("import", pruned(tmp_path / "upstream", half)).code == 0
    directory = tmp_path / "sparse"
    assert llmos("export", "-o", directory, "--format", "sparse").code == 0
    shard = sorted(directory.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-100], b""):
        shard.write_bytes(damaged)
        ran = llmos("import", directory)
        assert (ran.code, "is corrupt" in ran.err) == (5, True), ran.err
    shard.write_bytes(whole)
    told = json.loads((directory / "sparse.json").read_text())
    for change in ({"version": 2}, {"format": "other"}, {"files": {"../x": {"sha256": "", "holds": "../y"}}}):
        (directory / "sparse.json").write_text(json.dumps(told | change))
        assert llmos("import", directory).code in (2, 5)
    first = next(iter(told["tensors"]))
    told["tensors"][first]["shape"] = [1 << 40, 1 << 20]
    (directory / "sparse.json").write_text(json.dumps(told))
    assert llmos("import", directory).code == 5


def test_a_full_disk_is_no_damage(workspace: Workspace, llmos: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(sparse_files, "write_streamed", full)
    assert llmos("import", pruned(tmp_path / "m", half)).code == 0
    told = llmos("export", "-o", tmp_path / "out", "--format", "sparse")
    assert (told.code, list(tmp_path.glob("*out*"))) == (1, [])
    assert told.err.startswith(f"error: cannot write {tmp_path / 'out'}: the disk is full\n")
