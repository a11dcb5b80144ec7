"""Run by path in a process of its own: load a checkpoint directory as its users will, and write the logits of one batch.

    python -P fresh.py DIRECTORY INPUTS.safetensors OUTPUTS.safetensors [--ours]

Nothing of llmos is imported unless `--ours` says that the architecture is one of ours: for all others this is the proof that
stock transformers reads the directory.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(directory: str, inputs: str, outputs: str, ours: str = "") -> None:
    model = of_ours(directory) if ours else stock(directory)
    with torch.inference_mode():
        logits = model.eval()(**load_file(inputs)).logits
    save_file({"logits": logits.float().contiguous()}, outputs, metadata={"transformers": version("transformers")})


def stock(directory: str) -> Any:
    config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    loader = getattr(transformers, config["architectures"][0])
    groups = config.get("quantization_config", {}).get("config_groups", {}).values()
    told: dict[str, Any] = {}
    if any(not group["weights"]["symmetric"] for group in groups):
        # transformers 5.23 finds no place for zero points in layers that it leaves packed.
        told = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    return loader.from_pretrained(directory, dtype=torch.float32, local_files_only=True, **told)


def of_ours(directory: str) -> Any:
    from llmos_cli.models.load import load

    return load(Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
