"""Torch-Pruning: its example for language models (dependency graph, group magnitudes, whole heads), at the ratio that leaves the share
of parameters asked for; run in its own environment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch_pruning as tp
from transformers import AutoModelForCausalLM

from benchmarks.compress import contract

STEPS = 12
"""Halvings of the interval in which the pruning ratio is sought."""


def main() -> None:
    asked, phases = contract.order(), contract.Phases()
    example_BL = torch.from_numpy(np.load(asked.tokens)[:1, :8])
    with phases.phase("compress"):
        pruned = fitted(asked.parent, example_BL, keep=1 - asked.options["gone"])
    pruned.save_pretrained(asked.folder / "model")
    contract.report(asked, asked.folder / "model", phases, ["torch-pruning"], parameters=size(pruned))


def fitted(parent: Path, example_BL: torch.Tensor, *, keep: float) -> Any:
    """The model of the smallest ratio found that keeps at most `keep` of the parameters: each try starts from the parent.

    Without cutting heads where no try that cut them left a hidden size that they divide, as transformers wants it."""
    for head_ratio in (1.0, 0.0):
        low, high, best = 0.0, 0.9, None
        for _ in range(STEPS):
            ratio = (low + high) / 2
            model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
            whole = size(model)
            prune(model, example_BL, ratio, head_ratio * ratio)
            if size(model) > keep * whole:
                low = ratio
                continue
            high = ratio
            if model.config.hidden_size % model.config.num_attention_heads == 0:
                best = model
        if best is not None:
            return best
    raise SystemExit(f"no pruning ratio up to 0.9 leaves {keep:.0%} of the parameters")


def size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def prune(model: Any, example_BL: torch.Tensor, ratio: float, head_ratio: float) -> None:
    """In place; then the configuration says what was left."""
    config = model.config
    counts = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
        "v_proj": config.num_key_value_heads,
    }
    with without_rotation(model):
        pruner = tp.pruner.BasePruner(
            model,
            example_inputs=example_BL,
            importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
            pruning_ratio=ratio,
            round_to=config.num_attention_heads,  # transformers' configurations want a hidden size that heads divide
            ignored_layers=[model.lm_head],
            num_heads={
                getattr(layer.self_attn, name): count for layer in model.model.layers for name, count in counts.items()
            },
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=head_ratio,
            output_transform=lambda out: out.logits,
        )
        for group in pruner.step(interactive=True):
            group.prune()
    first = model.model.layers[0]
    config.hidden_size = model.lm_head.in_features
    config.intermediate_size = first.mlp.gate_proj.out_features
    config.head_dim = first.self_attn.head_dim
    config.num_attention_heads = first.self_attn.q_proj.out_features // config.head_dim
    config.num_key_value_heads = first.self_attn.k_proj.out_features // config.head_dim


@contextmanager
def without_rotation(model: Any) -> Iterator[None]:
    """Rotary embeddings left out of the traced graph: its search never ends in their concatenation of halves, and as heads go whole
    they tie nothing together that is not tied already."""
    code = sys.modules[type(model).__module__]
    with mock.patch.object(code, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k)):
        yield


if __name__ == "__main__":
    main()
