"""Serving: tokens per second for one stream and for sixteen, in this process and over HTTP, beside transformers' generate.

    python benchmarks/serve.py [--model demo|32m] [--tokens 128] [--rounds 3] [--threads N] [--warm off|full]
    python benchmarks/serve.py --codes DIRECTORY    a dense checkpoint: in bf16, and its linear layers rounded to W8A8 and to W4

A random Llama of the demo's shape, or of 32M parameters; greedy decoding of 16-token prompts. The best of the rounds counts,
because a busy machine only ever makes one slower; CPU seconds are of the process that computes. Over HTTP the clients stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmos_cli import device
from llmos_cli.core.manifest import Made
from llmos_cli.core.workspace import Workspace
from llmos_cli.models.kernels import coded
from llmos_cli.models.kernels.codes import rounded
from llmos_cli.models.load import load
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.serve import backend
from llmos_cli.serve.engine import Engine, Request

SHAPES: dict[str, dict[str, Any]] = {
    "demo": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
    },
    "32m": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
}
STREAMS = (1, 16)
PROMPT = 16


@dataclass(frozen=True)
class Row:
    """Tokens per second of wall time and of CPU time; `first` is the median time to a stream's first token, in seconds."""

    what: str
    streams: int
    wall: float
    cpu: float
    first: float | None = None


def main() -> None:
    options = arguments()
    device.use_threads(options.threads)
    torch.manual_seed(0)
    if options.codes:
        print(
            f"{options.codes.name[:12]}, {options.tokens} new tokens, {torch.get_num_threads()} threads, {device.processor()}"
        )
        print(table(by_codes(options.codes, options)))
        return
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[options.model], max_position_embeddings=512)).eval()
    model.generation_config.eos_token_id = None
    rows = [*by_transformers(model, options), *by_engine(model, options), *by_http(model, options)]
    print(f"{options.model}, {options.tokens} new tokens, {torch.get_num_threads()} threads, {device.processor()}")
    print(table(rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=Path, default=None)
    parser.add_argument("--model", choices=SHAPES, default="demo")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--warm", choices=("off", "full"), default="off")
    return parser.parse_args()


def prompts(streams: int) -> list[tuple[int, ...]]:
    generator = random.Random(0)
    return [tuple(generator.randrange(1, 300) for _ in range(PROMPT)) for _ in range(streams)]


def by_transformers(model: Any, options: argparse.Namespace) -> list[Row]:
    def generate(streams: int) -> None:
        tokens = torch.tensor(prompts(streams))
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=options.tokens,
            min_new_tokens=options.tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return [best("transformers generate", streams, options, generate) for streams in STREAMS]


SCHEMES: dict[str, tuple[str, str]] = {
    "bf16": ("", ""),
    "W8A8": ("w8a8", ""),
    "W8A8, head too": ("w8a8", "w8a8"),
    "W4": ("weights", ""),
    "W4, head W4": ("weights", "w4"),
}
"""How the linear layers are stored and how the head is held, by what a row is called."""


def by_codes(source: Path, options: argparse.Namespace) -> list[Row]:
    """The engine over one checkpoint in several forms; weights are rounded to nearest, for speed does not depend on how."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for what, (scheme, head) in SCHEMES.items():
            directory = rounded_checkpoint(source, Path(folder) / scheme, scheme) if scheme else source
            model = coded.load(directory, dtype=torch.bfloat16)
            if head:
                coded.quantize_head(model, head)
            found += by_engine(model, options, what)
    return found


def rounded_checkpoint(source: Path, directory: Path, scheme: str) -> Path:
    bits = 8 if scheme == "w8a8" else 4
    if not directory.is_dir():
        layers = [
            item
            for item in load(source).named_modules()
            if isinstance(item[1], torch.nn.Linear) and item[0] != "lm_head"
        ]
        quantized = {name: rounded_layer(layer.weight, bits) for name, layer in layers}
        write_quantized(directory, source, quantized, "w8a8" if bits == 8 else "weights")
    return directory


def rounded_layer(weight_OI: torch.Tensor, bits: int) -> Quantized:
    group = None if bits == 8 else next(size for size in (128, 64, 32) if weight_OI.shape[1] % size == 0)
    codes = rounded(weight_OI, bits, group)
    return Quantized(codes.codes_OI, codes.scales_OG, bits, group or -1)


def by_engine(model: Any, options: argparse.Namespace, what: str = "llmos engine") -> list[Row]:
    built = backend.build(model, slots=max(STREAMS), context=512, warm=options.warm)

    def decode(streams: int) -> None:
        engine = Engine(built.decoder)
        for index, prompt in enumerate(prompts(streams)):
            engine.submit(Request(index, prompt, options.tokens))
        while engine.busy:
            engine.step()

    return [best(what, streams, options, decode) for streams in STREAMS]


def best(what: str, streams: int, options: argparse.Namespace, work: Callable[[int], None]) -> Row:
    """The first round warms up and does not count."""
    walls, cpus = [], []
    for _ in range(options.rounds + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        work(streams)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    made = streams * options.tokens
    return Row(what, streams, made / min(walls[1:]), made / min(cpus[1:]))


def by_http(model: Any, options: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        ws = workspace(Path(folder) / "served", model)
        words = ["deploy", "--port", "0", "--json", "--warm", options.warm, "-s", "deploy.context=512"]
        process = subprocess.Popen(
            [sys.executable, "-m", "llmos_cli", *words],
            cwd=ws.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            engine = psutil.Process(process.pid).children()[0]
            return [over_http(url, engine, streams, options) for streams in STREAMS]
        finally:
            process.terminate()
            process.wait()


def workspace(root: Path, model: Any) -> Workspace:
    ws = Workspace.create(root)
    made = Made("import", (), {"data": {"task": "causal-lm"}}, {}, {}, 0, "2026-01-01T00:00:00Z")
    with ws.begin("import", config={}) as run, ws.stage() as folder:
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        run.commit(folder, made)
    return ws


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([__doc__], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def over_http(url: str, engine: psutil.Process, streams: int, options: argparse.Namespace) -> Row:
    walls, cpus, firsts = [], [], []
    for _ in range(options.rounds + 1):
        wall, cpu = time.perf_counter(), busy(engine)
        firsts.append(asyncio.run(together(url, prompts(streams), options.tokens)))
        walls.append(time.perf_counter() - wall)
        cpus.append(busy(engine) - cpu)
    made = streams * options.tokens
    first = min(statistics.median(each) for each in firsts[1:])
    return Row("llmos over HTTP", streams, made / min(walls[1:]), made / min(cpus[1:]), first)


def busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def together(url: str, asked: Sequence[Sequence[int]], tokens: int) -> list[float]:
    """Seconds to the first token of each stream."""
    async with httpx.AsyncClient(timeout=600) as client:
        return await asyncio.gather(*(stream(client, url, prompt, tokens) for prompt in asked))


async def stream(client: httpx.AsyncClient, url: str, prompt: Sequence[int], tokens: int) -> float:
    body = {"prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "stream": True}
    start, first = time.perf_counter(), 0.0
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for _ in response.aiter_bytes():
            first = first or time.perf_counter() - start
    return first


def table(rows: Sequence[Row]) -> str:
    lines = ["| | streams | tokens/s | tokens per CPU second | median first token |", "|---|---|---|---|---|"]
    for row in rows:
        first = "" if row.first is None else f"{1000 * row.first:.0f} ms"
        lines.append(f"| {row.what} | {row.streams} | {row.wall:,.0f} | {row.cpu:,.0f} | {first} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
