"""Models as others make them, of architectures that differ in where it matters: named otherwise, without a size of pictures, with
inputs that are no sequences of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageClassification
from transformers import AutoModelForSequenceClassification as AutoModelForTexts

from llmos_cli.core.workspace import Workspace
from llmos_cli.data.pixels import Pixels
from llmos_cli.models.load import load
from tests.operations.test_import_export import tokenized

AUTO = {
    "causal-lm": AutoModelForCausalLM,
    "text-classification": AutoModelForTexts,
    "image-classification": AutoModelForImageClassification,
}
WIDTHS: dict[str, Any] = {
    "vocab_size": 290,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OPT = {**WIDTHS, "ffn_dim": 64, "word_embed_proj_dim": 32}
DIGITS = {"id2label": {number: str(number) for number in range(10)}}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", **DIGITS}
LINES = "\n".join(f"{number} is a number, and {number * 7 % 31} another one that follows it" for number in range(400))
ROWS = "text,label\n" + "\n".join(
    f"{line},LABEL_{place % 2}" for place, line in enumerate(LINES.replace(",", "").split("\n"))
)
DATA = ("-s", "data.sequence_length=32", "-s", "data.max_samples=32", "-s", "data.max_eval_samples=8")
QUICK = ("-s", "quantize.latency=false", "-s", "quantize.calibration_samples=8", "--json")


def upstream(folder: Path, model_type: str, task: str, **config: Any) -> Path:
    """A folder as `save_pretrained` leaves it: weights of the size that training gives them, and a tokenizer."""
    torch.manual_seed(0)
    model = AUTO[task].from_config(CONFIG_MAPPING[model_type](**(config or WIDTHS)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5) if parameter.dim() > 1 else parameter.add_(0.1)
    model.save_pretrained(folder)
    tokenized(folder)
    return folder


@pytest.mark.parametrize(
    ("method", "model_type", "task", "config", "left", "changed"),
    [
        ("w8a8", "bert", "text-classification", WIDTHS, ["bert.pooler.dense"], 13),
        (
            "fp8",
            "opt",
            "causal-lm",
            OPT,
            [f"model.decoder.layers.{at}.fc{half}" for at in (0, 1) for half in (1, 2)],
            12,
        ),
    ],
)
def test_inputs_that_are_no_tokens_stay_as_they_are(
    workspace: Workspace, llmos: Any, tmp_path: Path, method: str, model_type: str, task: str,
    config: dict[str, Any], left: list[str], changed: int,
) -> None:  # fmt: skip
    """transformers takes one scale for all of them, so that an answer would hang on what it is batched with."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES.split("\n")))
    (tmp_path / "data.csv").write_text(ROWS)
    assert llmos("import", upstream(tmp_path / "hub", model_type, task, **config)).code == 0
    source = tmp_path / ("data.jsonl" if task == "causal-lm" else "data.csv")
    ran = llmos("quantize", "--method", method, *QUICK, "-s", f"data.source={source}", *DATA)
    assert ran.code == 0, ran.err
    assert (ran.json["changed"], ran.json["proof"]["parity"]["difference"]) == (changed, 0.0)
    assert ran.json["notes"][-1].startswith(f"the inputs of {left[0]}")
    assert not ran.json["proof"]["conformance"]["refused"]

    directory = Workspace.find().checkpoint("HEAD").path
    rounding = [
        n
        for n, module in load(directory).named_modules()
        if type(module).__name__ in ("QuantizedLinear", "Float8Linear")
    ]
    assert len(rounding) == changed - len(left) and not set(rounding) & set(left)


def test_a_language_model_whose_name_has_no_suffix_of_ours(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """GPT2LMHeadModel."""
    widths = {"vocab_size": 290, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    folder = upstream(tmp_path / "hub", "gpt2", "causal-lm", **widths)
    ran = llmos("import", folder, "--json")
    assert (ran.code, ran.json["task"], ran.json["architecture"]) == (0, "causal-lm", "GPT2LMHeadModel")
    ids = torch.arange(16)[None]
    with torch.no_grad():
        ours = load(Workspace.find().checkpoint("HEAD").path)(input_ids=ids).logits
        assert torch.equal(ours, AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits)


def test_an_image_model_that_takes_any_size(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    folder = upstream(tmp_path / "hub", "resnet", "image-classification", **RESNET)
    seen = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 16, "width": 16}, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(seen))
    assert llmos("import", folder).code == 0
    ran = llmos("export", "-o", tmp_path / "half", "--type", "float16", "--json")
    assert ran.code == 0 and 0 < ran.json["difference"] < 0.01
    for words in ((), ("--dry-run",)):
        cut = llmos("prune", "--method", "width", "--sparsity", "0.2", "-s", "data.source=builtin:digits", *words)
        assert (cut.code, "nothing of a resnet can be made narrower" in cut.err) == (2, True), cut.err


def test_a_text_is_cut_to_the_positions_that_tokens_have(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """RoBERTa's begin after the padding token's number."""
    config = {**WIDTHS, "max_position_embeddings": 66, "pad_token_id": 1}
    assert llmos("import", upstream(tmp_path / "hub", "roberta", "text-classification", **config)).code == 0
    (tmp_path / "rows.csv").write_text("text\n" + "many words " * 200 + "\n")
    ran = llmos("predict", "HEAD", tmp_path / "rows.csv", "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json["predictions"][0]["probabilities"]) == {"LABEL_0", "LABEL_1"}
    (tmp_path / "data.csv").write_text(ROWS)
    ran = llmos("eval", "-s", f"data.source={tmp_path / 'data.csv'}", "-s", "data.sequence_length=65")
    assert ran.code == 2 and "the model has 64 positions" in ran.err


def test_what_comes_before_the_blocks_is_left_alone(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """ELECTRA's projection of its embeddings: changed after the blocks that it feeds, these would have been fitted to what it was."""
    config = {**WIDTHS, "embedding_size": 16}
    assert llmos("import", upstream(tmp_path / "hub", "electra", "text-classification", **config)).code == 0
    (tmp_path / "data.csv").write_text(ROWS)
    told = ("-s", f"data.source={tmp_path / 'data.csv'}", *DATA)
    ran = llmos("quantize", "--method", "gptq", *QUICK, *told)
    assert (ran.code, ran.json["left_alone"]["electra.embeddings_project"]) == (0, "embedding"), ran.err
    ran = llmos("prune", "HEAD~1", "--method", "width", "--sparsity", "0.1", "--dry-run", "--json", *told)
    assert (ran.code, "do not change in proportion" in ran.json["left_alone"]["num_key_value_heads"]) == (0, True), (
        ran.err
    )


MIXTRAL = {**WIDTHS, "num_local_experts": 3, "num_experts_per_tok": 2}


def test_experts_are_named_where_they_are_left_alone(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """All of a block's experts stand in one tensor; transformers reads no file in which the other layers alone are codes."""
    assert llmos("import", upstream(tmp_path / "hub", "mixtral", "causal-lm", **MIXTRAL)).code == 0
    told = ("-s", f"data.source={workspace.root / 'rows.jsonl'}", *DATA)
    (workspace.root / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES.split("\n")))
    ran = llmos("prune", "--method", "magnitude", "-s", "prune.latency=false", "--json", *told)
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    assert (ran.code, ran.json["left_alone"][experts]) == (0, "in a MixtralExperts, which no method reads")
    ran = llmos("quantize", "--dry-run", *told)
    assert ran.code == 1 and "no method turns the experts of a mixtral into codes" in ran.err


def test_sizes_are_those_of_files_that_call_tensors_otherwise(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """A ViT's layers have other names in its files than in the model: `compress` took none of them for something to shrink."""
    names = {"id2label": {number: str(number) for number in range(10)}}
    config = {**WIDTHS, "image_size": 8, "patch_size": 4, "num_channels": 1, **names}
    folder = upstream(tmp_path / "hub", "vit", "image-classification", **config)
    Pixels(8, 1, (0.5,), (0.5,)).save_pretrained(folder)
    assert llmos("import", folder).code == 0
    told = ("-s", "data.source=builtin:digits", "-s", "data.max_samples=32", "-s", "data.max_eval_samples=8")
    ran = llmos("compress", "--target-ratio", "0.5", "--dry-run", "--json", *told)
    assert ran.code == 0, ran.err
    uncut, smallest, largest = ran.json["sizes"][0]
    assert uncut == 0 and smallest < largest < 0.6 * ran.json["size"]
    ran = llmos("quantize", "--method", "rtn", *QUICK, *told)
    before, after = (ran.json["proof"][f"bytes_{when}"] for when in ("before", "after"))
    assert before["layers"] - after["layers"] == pytest.approx(before["total"] - after["total"], abs=4096)


def test_layers_of_a_kind_of_their_own_round_their_inputs(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """FalconLinear is a Linear; and the size of a Falcon's heads follows from their number, so it cannot be kept."""
    assert llmos("import", upstream(tmp_path / "hub", "falcon", "causal-lm", **WIDTHS)).code == 0
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES.split("\n")))
    told = ("-s", f"data.source={tmp_path / 'rows.jsonl'}", *DATA)
    ran = llmos("quantize", "--method", "w8a8", *QUICK, *told)
    assert (ran.code, ran.json["changed"], ran.json["proof"]["parity"]["difference"]) == (0, 8, 0.0), ran.err
    ran = llmos("prune", "HEAD~1", "--method", "width", "--sparsity", "0.1", "--dry-run", "--json", *told)
    assert ran.code == 0 and any("ffn_hidden_size" in name or "dense" in name for name in ran.json["matrices"]), ran.err


def test_codes_that_transformers_would_not_load_are_refused_before_they_are_chosen(
    workspace: Workspace, llmos: Any, tmp_path: Path
) -> None:
    """ModernBERT's initialisation looks for the weights that packing replaces."""
    config = {**WIDTHS, "cls_token_id": 0, "sep_token_id": 0}
    assert llmos("import", upstream(tmp_path / "hub", "modernbert", "text-classification", **config)).code == 0
    (tmp_path / "data.csv").write_text(ROWS)
    told = ("-s", f"data.source={tmp_path / 'data.csv'}", *DATA)
    for more in ([], ["--dry-run"]):
        ran = llmos("quantize", "--method", "gptq", *QUICK, *told, *more)
        assert ran.code == 2 and "transformers loads no packed codes of a modernbert" in ran.err
    assert llmos("quantize", "--method", "w8a8", "--dry-run", *told).code == 0


def test_compress_cuts_what_cannot_be_quantized(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """GPT-2's layers have no quantized format, but its blocks can go."""
    widths = {"vocab_size": 290, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64, "bos_token_id": 0}
    assert llmos("import", upstream(tmp_path / "hub", "gpt2", "causal-lm", **widths)).code == 0
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES.split("\n")))
    quick = [
        f"compress.{told}" for told in ("cuts=[0.25]", "latency=false", "calibration_samples=8", "probe_samples=2")
    ]
    sets = [part for each in (f"data.source={tmp_path / 'rows.jsonl'}", *quick) for part in ("-s", each)]
    ran = llmos("compress", "--target-ratio", "0.8", "--json", *sets, *DATA)
    assert ran.code == 0, ran.err
    result = ran.json["result"]
    assert (result["changed"], "cut out" in result["reached"], "bits" in result["reached"]) == (0, True, False)
    assert result["proof"]["bytes_after"]["total"] <= 0.8 * result["proof"]["bytes_before"]["total"]


@pytest.mark.slow
def test_a_graph_that_torch_cannot_write_is_told(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    assert llmos("import", upstream(tmp_path / "hub", "mixtral", "causal-lm", **MIXTRAL)).code == 0
    ran = llmos("export", "-o", tmp_path / "graph", "--format", "onnx")
    assert ran.code == 1 and "torch writes no graph of a mixtral" in ran.err


def test_a_stack_of_two_kinds_keeps_the_only_one_of_a_kind(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    """LFM2: its first and its last block are convolutions, and transformers runs no such model without attention."""
    kinds = ["conv", "full_attention", "conv"]
    config = {**WIDTHS, "num_hidden_layers": 3, "layer_types": kinds, "block_auto_adjust_ff_dim": False}
    assert llmos("import", upstream(tmp_path / "hub", "lfm2", "causal-lm", **config)).code == 0
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES.split("\n")))
    told = ("-s", f"data.source={tmp_path / 'rows.jsonl'}", *DATA, "-s", "prune.latency=false", "--json")
    ran = llmos("prune", "--method", "depth", "--sparsity", "0.6", *told)
    assert (ran.code, ran.json["left_alone"].get("model.layers.1")) == (0, "the only full_attention block"), ran.err
    assert Workspace.find().checkpoint("HEAD").config_json()["layer_types"] == ["full_attention"]
    ran = llmos("prune", "HEAD~1", "--method", "width", "--sparsity", "0.1", "--dry-run", *told)
    assert ran.code == 0, ran.err
