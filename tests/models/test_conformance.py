"""Well-formed checkpoints pass, by compressed-tensors' own reader too; each rule is broken once, and said in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli.models import conformance
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import embedded, make, nearest, quantize_all

LAYER = "model.layers.0.mlp.down_proj"


def written(model: PreTrainedModel, directory: Path, of: Callable[[str, Tensor], Quantized], scheme: Any) -> Path:
    save(model, directory / "dense")
    write_quantized(directory / "q", directory / "dense", quantize_all(model, of), scheme)
    return directory / "q"


@pytest.fixture
def w4(llama: PreTrainedModel, tmp_path: Path) -> Path:
    return written(llama, tmp_path, lambda name, weight: nearest(weight, 4, 32), "weights")


def verdict(directory: Path) -> conformance.Conformance:
    found = conformance.check(directory)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("bits", "group", "scheme", "told"),
    [
        (4, 32, "weights", "W4A16 with groups of 32"),
        (8, 32, "weights", "W8A16 with groups of 32"),
        (4, -1, "weights", "W4A16 with a scale per channel"),
        (8, -1, "w8a8", "W8A8 with a scale per channel"),
    ],
)
def test_what_vllm_has_kernels_for(
    llama: PreTrainedModel, tmp_path: Path, bits: int, group: int, scheme: str, told: str
) -> None:
    directory = written(llama, tmp_path, lambda name, weight: nearest(weight, bits, group), scheme)
    assert verdict(directory) == conformance.Conformance(told)
    assert verdict(directory).sentence == f"by its documented rules vLLM runs it: {told}"


def test_a_dense_checkpoint_is_not_judged(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path / "dense")
    assert conformance.check(tmp_path / "dense") is None


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_other_widths_keep_the_format_and_lack_a_kernel(llama: PreTrainedModel, tmp_path: Path, bits: int) -> None:
    found = verdict(written(llama, tmp_path, lambda name, weight: nearest(weight, bits, 32), "weights"))
    assert found.broken == ()
    assert found.refused == (f"W{bits}A16 with groups of 32: for weights alone it has 4 and 8 bits",)


def test_layers_that_vllm_fuses_must_agree(llama: PreTrainedModel, tmp_path: Path) -> None:
    def codes(name: str, weight: Tensor) -> Quantized:
        return nearest(weight, 8 if name.endswith(("v_proj", "down_proj")) else 4, 32)

    found = verdict(written(llama, tmp_path, codes, "weights"))
    assert found.scheme == "W4A16 with groups of 32, W8A16 with groups of 32"
    assert found.refused == (
        "q_proj, k_proj, v_proj are one layer there, so they must share bits and groups "
        "(model.layers.0.self_attn, model.layers.1.self_attn)",
    )


def test_odd_groups_are_slower_and_ours_alone_unknown(llama: PreTrainedModel, tmp_path: Path) -> None:
    found = verdict(written(llama, tmp_path / "a", lambda name, weight: nearest(weight, 4, 16), "weights"))
    assert found.slow == ("groups of 16 by slower kernels than 32, 64, 128 or whole rows",)
    small = written(make("mlp", "image-classification"), tmp_path / "b", lambda name, w: nearest(w, 8), "w8a8")
    assert verdict(small).refused == ("it has no MlpForImageClassification",)


Config = dict[str, Any]


def group(config: Config) -> dict[str, Any]:
    return config["config_groups"]["group_0"]  # type: ignore[no-any-return]


CONFIGS: list[tuple[Callable[[Config], object], str]] = [
    (lambda c: c.update(format="dense"), "format is 'dense', not pack-quantized or int-quantized"),
    (lambda c: c.update(quant_method="gptq"), "quant_method is 'gptq', not compressed-tensors"),
    (lambda c: c.pop("quantization_status"), "quantization_status is None, not compressed"),
    (lambda c: c.update(config_groups={}), "config_groups is empty"),
    (lambda c: group(c)["weights"].update(strategy="rows"), "group_0 is no scheme"),
    (lambda c: group(c)["weights"].update(group_size=0), "group_0 is no scheme"),
    (lambda c: c["ignore"].append(LAYER), f"codes of a layer that no group targets ({LAYER})"),
    (lambda c: c["ignore"].clear(), "no weight_packed (lm_head)"),
    (lambda c: group(c).update(targets=["re:.*attn.*"]), "codes of a layer that no group targets (model.layers.0.mlp"),
    (lambda c: group(c)["weights"].update(num_bits=8), "weight_packed is I32 [64, 8], not I32 [64, 16]"),
    (lambda c: group(c)["weights"].update(group_size=64), "weight_scale is F32 [64, 2], not F16 [64, 1]"),
    (lambda c: group(c)["weights"].update(symmetric=False), "no weight_zero_point (model.layers.0.self_attn.q_proj"),
]


@pytest.mark.parametrize(("change", "told"), CONFIGS, ids=[told[:40] for _, told in CONFIGS])
def test_a_config_that_lies(w4: Path, change: Callable[[Config], object], told: str) -> None:
    file = w4 / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))
    assert told in "; ".join(verdict(w4).broken)
    assert verdict(w4).sentence.startswith("not the format it claims to be: ")


Tensors = dict[str, Tensor]
TENSORS: list[tuple[Callable[[Tensors], object], str]] = [
    (lambda t: t.pop(f"{LAYER}.weight_scale"), f"no weight_scale ({LAYER})"),
    (lambda t: t.update({f"{LAYER}.weight": torch.ones(64, 128)}), f"a dense weight beside its codes ({LAYER})"),
    (
        lambda t: t.update({f"{LAYER}.weight_shape": torch.tensor([128, 64])}),
        f"weight_shape says another shape than the model's ({LAYER})",
    ),
    (
        lambda t: t.update({f"{LAYER}.weight_packed": t[f"{LAYER}.weight_packed"].long()}),
        f"weight_packed is I64 [64, 16], not I32 [64, 16] ({LAYER})",
    ),
    (
        lambda t: t.update({f"{LAYER}.weight_zero_point": torch.zeros(8, 4, dtype=torch.int32)}),
        f"a zero point beside symmetric codes ({LAYER})",
    ),
]


@pytest.mark.parametrize(("change", "told"), TENSORS, ids=[told[:30] for _, told in TENSORS])
def test_tensors_that_do_not_fit(w4: Path, change: Callable[[Tensors], object], told: str) -> None:
    shard = next(file for file in w4.glob("*.safetensors") if f"{LAYER}.weight_packed" in load_file(file))
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    (w4 / "model.safetensors.index.json").unlink()
    assert told in verdict(w4).broken


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 32), (3, 64), (4, -1)])
def test_compressed_tensors_own_reader_finds_the_codes(
    llama: PreTrainedModel, tmp_path: Path, bits: int, group_size: int
) -> None:
    """Layer by layer, with nothing of transformers' in between."""
    directory = written(llama, tmp_path, lambda name, weight: nearest(weight, bits, group_size), "weights")
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    reader = BaseCompressor.get_value_from_registry(config["format"])
    tensors = {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}
    layers = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    assert len(layers) == 14
    for layer in layers:
        state = {part: tensors[f"{layer}.{part}"] for part in ("weight_packed", "weight_scale", "weight_shape")}
        read = reader.decompress(state, scheme)["weight"]
        assert torch.equal(read, nearest(llama.get_submodule(layer).weight, bits, group_size).dense())


def test_embeddings_are_int8_as_transformers_wants_them(tmp_path: Path) -> None:
    _, tied = embedded("llama", "causal-lm", tmp_path / "tied")
    found = verdict(tied)
    assert not found.broken and len(found.refused) == 1 and "looks up packed codes only" in found.refused[0]
    config = json.loads((tied / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["format"] = "pack-quantized"
    (tied / "config.json").write_text(json.dumps(config))
    assert any("packed codes of an embedding" in fault for fault in verdict(tied).broken)


def test_a_tied_head_has_scales_of_its_own(tmp_path: Path) -> None:
    _, directory = embedded("llama", "causal-lm", tmp_path)
    file = next(file for file in directory.glob("*.safetensors") if "lm_head.weight_scale" in load_file(file))
    kept = {name: value for name, value in load_file(file).items() if name != "lm_head.weight_scale"}
    save_file(kept, file, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    described = json.loads(index.read_text())
    del described["weight_map"]["lm_head.weight_scale"]
    index.write_text(json.dumps(described))
    assert verdict(directory).broken == ("no weight_scale (lm_head)",)
