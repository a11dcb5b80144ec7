"""llm-compressor: one-shot GPTQ or SparseGPT with its own defaults, run in its own environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier
from transformers import AutoModelForCausalLM

from benchmarks.compress import contract

HEADS = ["re:.*lm_head"]


def main() -> None:
    asked, phases = contract.order(), contract.Phases()
    torch.manual_seed(asked.options["seed"])
    with phases.phase("load"):
        model = AutoModelForCausalLM.from_pretrained(asked.parent, dtype=asked.options.get("dtype", "float32"))
    tokens_SL = np.load(asked.tokens)
    rows = {"input_ids": tokens_SL.tolist(), "attention_mask": np.ones_like(tokens_SL).tolist()}
    with phases.phase("compress"):
        oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=recipe(asked.options),
            max_seq_length=tokens_SL.shape[1],
            num_calibration_samples=tokens_SL.shape[0],
        )
    dense = asked.folder / "model"
    if asked.options.get("judged", True):
        write_dense(model, asked.parent, dense)
    with phases.phase("write"):
        model.save_pretrained(asked.folder / "native", save_compressed=True)
    contract.report(asked, dense, phases, ["llmcompressor", "compressed-tensors"])


def recipe(options: Mapping[str, Any]) -> Any:
    if options["method"] == "sparsegpt":
        pattern = {} if options["pattern"] == "unstructured" else {"mask_structure": options["pattern"]}
        return SparseGPTModifier(sparsity=0.5, targets=["Linear"], ignore=HEADS, **pattern)
    weights = {
        "num_bits": options["bits"], "type": "int", "symmetric": True, "strategy": "group", "group_size": options["group_size"],
    }  # fmt: skip
    return GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=HEADS)


def write_dense(model: Any, parent: Path, folder: Path) -> None:
    """What the result's weights stand for, as a plain fp32 directory: nothing is lost to how they are packed."""
    plain = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    found = model.state_dict()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(found[name])
    plain.save_pretrained(folder)


if __name__ == "__main__":
    main()
