"""GPTQ exports run by GPTQModel and auto-round, which share no code with what wrote them: the same logits."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.compress import venvs
from llmos_cli.models import gptq_files
from llmos_cli.models.load import load
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import nearest, quantize_all
from tests.operations.test_import_export import tokenized

pytestmark = pytest.mark.system
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = list(range(3, 35))
READERS = {
    "gptqmodel": """
import pathlib, sys, torch
from safetensors.torch import load_file, save_file
from gptqmodel import BACKEND, GPTQModel
for found in map(pathlib.Path, sys.argv[1:]):
    model = GPTQModel.load(str(found), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model
    layers = [type(module).__name__ for module in model.modules()].count("TorchLinear")
    with torch.inference_mode():
        logits = model(input_ids=load_file(found.parent / "asked.safetensors")["ids"]).logits
    save_file({"logits": logits.float().contiguous(), "layers": torch.tensor(layers)}, found.parent / "gptqmodel.safetensors")
""",
    "auto-round": """
import pathlib, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoRoundConfig
for found in map(pathlib.Path, sys.argv[1:]):
    own = AutoRoundConfig(backend="torch")
    model = AutoModelForCausalLM.from_pretrained(found, quantization_config=own, device_map="cpu", dtype=torch.float32)
    layers = [type(module).__module__.split(".")[0] for module in model.modules()].count("auto_round_extension")
    with torch.inference_mode():
        logits = model(input_ids=load_file(found.parent / "asked.safetensors")["ids"]).logits
    save_file({"logits": logits.float().contiguous(), "layers": torch.tensor(layers)}, found.parent / "auto-round.safetensors")
""",
}


def rounded(bits: int, group_size: int, *, asymmetric: bool = False) -> Callable[[str, Tensor], Quantized]:
    """Scales as fp16 holds them: what remains is the readers' arithmetic."""

    def of(name: str, weight: Tensor) -> Quantized:
        found = nearest(weight, bits, group_size, asymmetric=asymmetric, dtype=torch.float16)
        return replace(found, scales_OG=found.scales_OG.half())

    return of


def mixed(name: str, weight: Tensor) -> Quantized:
    return rounded(8 if "down" in name else 4, 32)(name, weight)


CASES: dict[str, Callable[[str, Tensor], Quantized]] = {
    **{f"{bits} bits, groups of {size}": rounded(bits, size) for bits in gptq_files.BITS for size in (32, -1)},
    **{f"{bits} bits, zero points": rounded(bits, 32, asymmetric=True) for bits in gptq_files.BITS},
    "mixed": mixed,
    "some dense": rounded(4, 32),
    "biases": rounded(4, 32),
    "head": rounded(4, 32),
}
UNKNOWN = {"auto-round": {f"{bits} bits, zero points" for bits in gptq_files.BITS}}
"""auto-round knows only the first version."""


def model(case: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if case != "biases":
        return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).half().eval()
    made = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)).half().eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    return made


def export(case: str, folder: Path) -> int:
    """The export, the question and our answer to it; how many layers are codes."""
    save(model(case), folder / "dense", dtype=torch.float16)
    tokenized(folder / "dense")
    dense = load(folder / "dense")
    codes = quantize_all(dense, CASES[case])
    if case == "head":
        codes["lm_head"] = CASES[case]("lm_head", dense.get_parameter("lm_head.weight"))
    kept = {name: value for name, value in codes.items() if case != "some dense" or "layers.0" in name}
    write_quantized(folder / "q", folder / "dense", kept)
    (folder / "gptq").mkdir()
    gptq_files.write(folder / "q", folder / "gptq")
    for file in (folder / "q").glob("token*"):
        shutil.copy(file, folder / "gptq")
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        logits = load(folder / "q")(input_ids=ids).logits.float()
    save_file({"ids": ids, "logits": logits, "layers": torch.tensor(len(kept))}, folder / "asked.safetensors")
    return len(kept)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {case: tmp_path_factory.mktemp("gptq") for case in CASES}
    for case, folder in found.items():
        export(case, folder)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_that_is_not_ours_says_the_same(folders: dict[str, Path], reader: str) -> None:
    if not venvs.whole(reader):
        pytest.skip(f"needs an environment of its own: python -m benchmarks.compress.venvs {reader}")
    read = {case: folder for case, folder in folders.items() if case not in UNKNOWN.get(reader, set())}
    alone = {"GPTQMODEL_CPU_WORKERS": "2", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [venvs.python(reader), "-c", READERS[reader], *(folder / "gptq" for folder in read.values())],
        capture_output=True,
        text=True,
        env={**os.environ, **alone},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    for case, folder in read.items():
        ours, theirs = load_file(folder / "asked.safetensors"), load_file(folder / f"{reader}.safetensors")
        assert theirs["layers"] == ours["layers"], case
        difference = (theirs["logits"] - ours["logits"]).abs().max() / ours["logits"].abs().max()
        assert difference < 0.002, (case, difference)  # they compute in fp16, or in fp32 with fp16 scales
