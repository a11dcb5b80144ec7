"""Training: how good the demo's model gets beside xz, and how fast the loop is beside Hugging Face's Trainer.

    python benchmarks/train.py quality [--seconds 220] [--keep DIR]
    python benchmarks/train.py speed [--steps 30] [--compile]

`quality` trains what `llmos init && llmos train` would, and compares bits per byte of the held-out text with `xz -9e` of
the same bytes: alone, and primed with the training text; it exits 1 when they need more than BOUND bits. `speed` gives the same model, batches, optimizer and arithmetic
to both loops, one after the other in one process, and prints tokens per second and of CPU time.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from llmos_cli import device
from llmos_cli.core.workspace import Workspace
from llmos_cli.data.sources import load
from llmos_cli.models.build import build
from llmos_cli.operations.config import resolve
from llmos_cli.operations.fit import fit
from llmos_cli.operations.init import init
from llmos_cli.operations.train import train
from llmos_cli.options.data import DataOptions
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks import load as task_called
from llmos_cli.tasks.base import Batch, Prepared, Split
from llmos_cli.ui import Ui

BOUND = 1.95
"""Bits per byte that the demo's model needs at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("--seconds", type=float, help="budget of the training; the config's own when absent")
    parser.add_argument("--keep", type=Path, help="make the workspace here and keep it")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    print(f"{device.processor()}, {device.threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        directory = asked.keep or Path(folder)
        init(directory, "causal-lm")
        workspace = Workspace.find(directory)
        if asked.what == "quality":
            sys.exit(0 if quality(workspace, asked.seconds) <= BOUND else 1)
        speed(workspace, steps=asked.steps, compiled=asked.compile)


def quality(workspace: Workspace, seconds: float | None) -> float:
    """Bits per byte of the test split."""
    resolved = resolve(workspace, "train", flags={"train.max_seconds": seconds})
    result = train(workspace, None, resolved, emit=Ui().emit)
    tested = result.metrics["test"]
    print(f"{result.parameters:,} parameters, {result.steps:,} steps in {result.seconds:.0f} s, "
          f"{result.rate:,.0f} tokens/s, {result.precision}, {'compiled' if result.compiled else 'eager'}")  # fmt: skip
    print(f"llmos                       {tested['bits_per_byte']:.3f} bits per byte of the test split")
    for name, bits in xz(resolved.config.data, workspace).items():
        print(f"{name:<27} {bits:.3f}")
    return tested["bits_per_byte"]


def xz(data: DataOptions, workspace: Workspace) -> dict[str, float]:
    """Bits per byte of the test text by `xz -9e`, alone and as what it adds to the training text before it."""
    splits = load(data, ("text",), cache=workspace.cache).splits
    held_out = "".join(splits["test"]["text"]).encode()
    seen = "".join(dict.fromkeys(splits["train"]["text"])).encode()
    alone, before, both = (_xz_bytes(text) for text in (held_out, seen, seen + held_out))
    bits = 8 / len(held_out)
    return {"xz -9e alone": alone * bits, "xz -9e after training text": (both - before) * bits}


def _xz_bytes(text: bytes) -> int:
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def speed(workspace: Workspace, *, steps: int, compiled: bool) -> None:
    config = resolve(workspace, "train").config
    prepared = task_called("causal-lm").prepare(config.data, config.model, seed=0, cache=workspace.cache)
    batch, length = config.train.batch_size, config.data.sequence_length
    print(f"{steps} steps of {batch} x {length} tokens, AdamW, float32, {'compiled' if compiled else 'eager'}")
    rates = {}
    for name, run in {"llmos": _ours, "HF Trainer": _theirs}.items():
        model = build(config.model, "causal-lm", {**prepared.facts, "sequence_length": length}, seed=0)
        clock = run(model, prepared, batch, steps, compiled)
        wall, cpu = clock.medians()
        rates[name] = batch * length / wall
        print(f"{name:<11} {rates[name]:>7,.0f} tokens/s   {batch * length / cpu:>7,.0f} per CPU second")
    print(f"llmos / HF Trainer: {rates['llmos'] / rates['HF Trainer']:.2f}")


class Clock:
    """Wall and CPU time at the beginning of each step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def tick(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def medians(self) -> tuple[float, float]:
        """Seconds of a step, the first few left out: they warm up, and compile."""
        return _median_gap(self.wall[5:]), _median_gap(self.cpu[5:])


def _median_gap(moments: Sequence[float]) -> float:
    return statistics.median(after - before for before, after in itertools.pairwise(moments))


class Ticking:
    """A split that looks at the clock whenever a batch is taken: once a step."""

    def __init__(self, split: Split, clock: Clock) -> None:
        self._split, self._clock = split, clock

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        if len(rows) > 1:
            self._clock.tick()
        return self._split.batch(rows, augment_seed=augment_seed)

    def bytes(self, rows: Sequence[int]) -> int:
        return self._split.bytes(rows)


def _ours(model: Any, prepared: Prepared, batch: int, steps: int, compiled: bool) -> Clock:
    clock = Clock()
    options = TrainOptions(
        max_steps=steps, batch_size=batch, precision="float32", compile="on" if compiled else "off", keep="last"
    )
    fit(model, Ticking(prepared.splits["train"], clock), None, task_called("causal-lm"), options, seed=0)
    return clock


def _theirs(model: Any, prepared: Prepared, batch: int, steps: int, compiled: bool) -> Clock:
    clock = Clock()
    split = prepared.splits["train"]

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            ids = split.batch([row])["input_ids"][0]
            return {"input_ids": ids, "labels": ids}

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=2e-3, weight_decay=0.01,
            optim="adamw_torch_fused", use_cpu=device.pick().type == "cpu", torch_compile=compiled, save_strategy="no",
            report_to=[], logging_strategy="no", disable_tqdm=True, max_grad_norm=1.0,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Watch()]).train()
    return clock


if __name__ == "__main__":
    main()
