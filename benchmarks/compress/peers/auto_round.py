"""auto-round: rounding and clipping learnt block by block with signed gradients, run in its own environment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.compress import contract


def main() -> None:
    asked, phases = contract.order(), contract.Phases()
    with phases.phase("load"):
        model = AutoModelForCausalLM.from_pretrained(asked.parent, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(asked.parent)
    tokens_SL = torch.from_numpy(np.load(asked.tokens))
    with phases.phase("compress"):
        tuner = AutoRound(
            model,
            tokenizer,
            scheme=f"W{asked.options['bits']}A16",
            group_size=asked.options["group_size"],
            iters=asked.options["iters"],
            nsamples=tokens_SL.shape[0],
            seqlen=tokens_SL.shape[1],
            dataset=[{"input_ids": tokens_L[None]} for tokens_L in tokens_SL],
            batch_size=8,
            seed=asked.options["seed"],
            amp=False,
            enable_torch_compile=False,
            device_map="cpu",
        )
        tuner.quantize_and_save(str(asked.folder / "model"), format="fake")
    contract.report(asked, dense(asked.folder / "model"), phases, ["auto-round"])


def dense(folder: Path) -> Path:
    """Where it wrote the weights that its codes stand for (a folder of its own naming), as the plain model that they are."""
    config = next(folder.rglob("config.json"))
    said = json.loads(config.read_text())
    said.pop("quantization_config", None)
    config.write_text(json.dumps(said, indent=1))
    return config.parent


if __name__ == "__main__":
    main()
