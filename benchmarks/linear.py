"""Products with codes against dense ones, per linear layer: how many times faster than bf16, rounding the inputs included.

    python benchmarks/linear.py [--shapes 256,1024x4096] [--rows 1,4,8,16,128] [--threads N] [--turns 5]

Random weights; groups of 128 for int4 (64 or 32 where 128 does not divide), one scale per output for int8. All forms of a shape take turns
within one run, and the best turn of each counts, in CPU seconds of the whole process with one thread and in wall seconds with more.
`chosen` is what serving would take, after a measurement of its own. Exits 1 where that is slower than bf16 by more than noise, and
where a bar of `BARS` is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from llmos_cli import device
from llmos_cli.models.kernels import choice, forms, native
from llmos_cli.models.kernels.codes import Codes, rounded

SCHEMES = ("w8a8", "w8", "w4")
NOISE = 1.1
BARS = {("w8a8", 1, 1024): 1.4, ("w8a8", 128, 2048): 1.4, ("w4", 1, 256): 1.8}
"""Times faster than bf16, by scheme, rows and the least width (both sides) from which it is asked for."""


@dataclass(frozen=True)
class Cell:
    """Seconds of one product."""

    outputs: int
    inputs: int
    rows: int
    seconds: dict[str, float]

    def gain(self, what: str) -> float:
        return self.seconds["bf16"] / self.seconds[what]


def main() -> int:
    options = arguments()
    device.use_threads(options.threads)
    threads = torch.get_num_threads()
    print(f"{device.processor()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}")
    print(f"our own kernels: {native.obstacle() or 'in use'}")
    print(header())
    cells = []
    for outputs, inputs in options.shapes:
        for cell in measured(outputs, inputs, options.rows, options.turns):
            print(line(cell), flush=True)
            cells.append(cell)
    wrong = [*slower(cells), *missed(cells)]
    print("\n".join(wrong) or "no chosen product is slower than bf16; every bar is met")
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=shapes, default=shapes("256,512,576x1536,1024,2048,4096"))
    parser.add_argument("--rows", type=numbers, default=numbers("1,4,8,16,128"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def shapes(text: str) -> list[tuple[int, int]]:
    """Outputs x inputs; one number is a square."""
    pairs = [each.split("x") for each in text.split(",")]
    return [(int(pair[0]), int(pair[-1])) for pair in pairs]


def measured(outputs: int, inputs: int, rows: Sequence[int], turns: int) -> list[Cell]:
    torch.manual_seed(0)
    weight_OI = torch.randn(outputs, inputs) / inputs**0.5
    products: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype]] = {
        "fp32": (dense(weight_OI), torch.float32),
        "bf16": (dense(weight_OI.bfloat16()), torch.bfloat16),
    }
    for scheme in SCHEMES:
        codes = coded(weight_OI, scheme)
        for name in forms.usable(codes, torch.bfloat16):
            if name != "dense":
                products[f"{scheme}: {name}"] = (forms.build(name, codes, torch.bfloat16).product, torch.bfloat16)
        products[f"{scheme} chosen"] = (choice.choose(codes, torch.bfloat16), torch.bfloat16)
    return [Cell(outputs, inputs, count, race(products, count, inputs, turns)) for count in rows]


def dense(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight_OI)


def coded(weight_OI: Tensor, scheme: str) -> Codes:
    if scheme != "w4":
        return replace(rounded(weight_OI, 8), rounds_inputs=scheme == "w8a8")
    return rounded(weight_OI, 4, next(size for size in (128, 64, 32) if weight_OI.shape[1] % size == 0))


def race(
    products: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype]], rows: int, inputs: int, turns: int
) -> dict[str, float]:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best: dict[str, float] = {}
    with torch.inference_mode():
        for _ in range(turns):
            for name, (product, dtype) in products.items():
                seconds = timed(product, torch.randn(rows, inputs).to(dtype), clock)
                best[name] = min(best.get(name, seconds), seconds)
    return best


def timed(product: Callable[[Tensor], Tensor], x: Tensor, clock: Callable[[], float], budget: float = 0.02) -> float:
    product(x)
    done, start = 0, clock()
    while done == 0 or clock() - start < budget:
        product(x)
        done += 1
    return (clock() - start) / done


def header() -> str:
    names = ["bf16, ms", "fp32", *(f"{scheme} {part}" for scheme in SCHEMES for part in ("ours", "torch", "chosen"))]
    return f"| outputs x inputs | rows | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}"


def line(cell: Cell) -> str:
    texts = [f"{1000 * cell.seconds['bf16']:.4f}", f"{cell.gain('fp32'):.2f}x"]
    for scheme in SCHEMES:
        ours = [name for name in cell.seconds if name.startswith(f"{scheme}: native")]
        torchs = [name for name in cell.seconds if name.startswith(f"{scheme}: ") and name not in ours]
        for names in (ours, torchs, [f"{scheme} chosen"]):
            texts.append(f"{max(map(cell.gain, names)):.2f}x" if names else "")
    return f"| {cell.outputs} x {cell.inputs} | {cell.rows} | {' | '.join(texts)} |"


def slower(cells: Sequence[Cell]) -> list[str]:
    return [
        f"slower than bf16: {scheme} chosen, {cell.outputs} x {cell.inputs}, {cell.rows} rows, {cell.gain(f'{scheme} chosen'):.2f}x"
        for cell in cells
        for scheme in SCHEMES
        if cell.gain(f"{scheme} chosen") * NOISE < 1
    ]


def missed(cells: Sequence[Cell]) -> list[str]:
    return [
        f"below {bar}x: {scheme}, {cell.outputs} x {cell.inputs}, {cell.rows} rows, {cell.gain(f'{scheme} chosen'):.2f}x"
        for (scheme, rows, width), bar in BARS.items()
        for cell in cells
        if cell.rows == rows and min(cell.outputs, cell.inputs) >= width and cell.gain(f"{scheme} chosen") < bar
    ]


if __name__ == "__main__":
    sys.exit(main())
