"""The rows of the table: which cells each has, and the bars that hold between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.compress.cells import OWN, Cell

AUTO_ROUND_ITERATIONS = 200
AUTO_ROUND_PARAMETERS = 20_000_000
"""Above this auto-round takes hours on a CPU."""
ONE_STREAM = "llmos gptq, one stream"
"""Fitted to what the compressed layers give, as llm-compressor's is; ours else runs the original beside them and follows that."""
PLAIN = "llmos gptq, plain"
"""One stream, and each column once, as the paper has it: no rounds of refits afterwards."""
AS_STORED = "llm-compressor gptq, in bf16"
"""The model in the type of its files, which is faster where the hardware multiplies it; in fp32, as above, its codes are better."""


@dataclass(frozen=True)
class Bar:
    """`what` of cell `of` is at most `most` times that of cell `against`, or of the parent where that is empty."""

    what: Literal["KL", "perplexity", "latency fp32", "latency bf16", "time", "peak memory"]
    of: str
    against: str
    most: float


@dataclass(frozen=True)
class Row:
    """`gauge`: the cell whose KL must stand out of its own noise for this row to decide anything; None where no KL does."""

    name: str
    cells: tuple[Cell, ...]
    bars: tuple[Bar, ...]
    gauge: str | None


@dataclass(frozen=True)
class Form:
    """What the command line may say of all rows: inputs that share a scale, steps of healing, samples of calibration."""

    group_size: int
    heal: int
    samples: int


def ours(verb: str, name: str, form: Form, **options: Any) -> Cell:
    own = {"calibration_samples": form.samples, **options}
    return Cell(OWN, name, {"verb": verb, "sets": [f"{verb}.{key}={value}" for key, value in own.items()]})


def weights(bits: int, most: float) -> Callable[[Form], Row]:
    """Weights of `bits` bits in groups: ours without and with healing against the peers' best."""

    def row(form: Form) -> Row:
        shape = {"bits": bits, "group_size": form.group_size}
        healed = f"llmos gptq + heal {form.heal}"
        return Row(
            f"W{bits}",
            (
                ours("quantize", "llmos rtn", form, method="rtn", **shape),
                ours("quantize", "llmos gptq", form, method="gptq", **shape),
                ours("quantize", ONE_STREAM, form, method="gptq", **shape, **{"gptq.asymmetry": 0}),
                ours("quantize", PLAIN, form, method="gptq", **shape, **{"gptq.asymmetry": 0, "gptq.passes": 0}),
                ours("quantize", healed, form, method="gptq", heal=form.heal, **shape),
                Cell("llm-compressor", "llm-compressor gptq", {"method": "gptq", **shape}),
                Cell("llm-compressor", AS_STORED, {"method": "gptq", "dtype": "auto", **shape}),
                Cell("auto-round", "auto-round", {"iters": AUTO_ROUND_ITERATIONS, **shape}),
            ),
            (
                Bar("KL", healed, "llm-compressor gptq", most),
                Bar("KL", healed, "auto-round", 1.0),
                Bar("KL", "llmos gptq", "llm-compressor gptq", 1.0),
                Bar("KL", ONE_STREAM, "llm-compressor gptq", 1.0),
                Bar("KL", PLAIN, "llm-compressor gptq", 1.0),
                Bar("time", ONE_STREAM, "llm-compressor gptq", 0.7),
                Bar("time", PLAIN, "llm-compressor gptq", 0.7),
                Bar("time", PLAIN, AS_STORED, 0.7),
                Bar("time", "llmos gptq", "llm-compressor gptq", 1.0),
            ),
            gauge="llmos rtn",
        )

    return row


def sparse(pattern: str, name: str) -> Callable[[Form], Row]:
    """Half of the weights zero; what RTN is to widths, magnitude pruning is here."""

    def row(form: Form) -> Row:
        healed = f"llmos sparsegpt + heal {form.heal}"
        return Row(
            name,
            (
                ours("prune", "llmos magnitude", form, method="magnitude", pattern=pattern),
                ours("prune", "llmos sparsegpt", form, method="sparsegpt", pattern=pattern),
                ours("prune", healed, form, method="sparsegpt", pattern=pattern, heal=form.heal),
                Cell("llm-compressor", "llm-compressor sparsegpt", {"method": "sparsegpt", "pattern": pattern}),
            ),
            (Bar("KL", healed, "llm-compressor sparsegpt", 0.5),),
            gauge="llmos magnitude",
        )

    return row


def memory(form: Form) -> Row:
    """Peak memory of the whole process, our proof included; the peer holds the model in the type of its files."""
    shape = {"bits": 4, "group_size": form.group_size}
    peer = {"method": "gptq", "dtype": "auto", "judged": False, **shape}
    free = ours("quantize", "llmos gptq", form, method="gptq", **shape)
    tight = ours("quantize", TIGHT, form, method="gptq", memory_budget=BUDGET, **shape)
    return Row(
        "memory",
        (
            *(Cell(own.who, own.name, {**own.options, "judged": False}) for own in (free, tight)),
            Cell("llm-compressor", "llm-compressor gptq", peer),
        ),
        (Bar("peak memory", TIGHT, "llm-compressor gptq", 0.5),),
        gauge=None,
    )


BUDGET = 0.1
TIGHT = f"llmos gptq, {BUDGET} GB"
"""Told how much it may take beside one block; else it may take half of what is free, and holds both models while it proves the result."""
GONE = 0.3
"""Share of the parameters that a structured cut takes."""


def structured(form: Form) -> Row:
    """Parameters gone for good, everyone healed alike: our shape and widths, our depth (ShortGPT's), Torch-Pruning's widths."""
    steps = f" + heal {form.heal}"
    cut = {"sparsity": GONE, "heal": form.heal}
    shape = ours("prune", f"llmos shape{steps}", form, method="shape", **cut)
    return Row(
        "structured",
        (
            Cell(shape.who, shape.name, {**shape.options, "paced": True}),
            ours("prune", f"llmos width{steps}", form, method="width", **cut),
            ours("prune", f"llmos depth{steps}", form, method="depth", **cut),
            Cell("torch-pruning", f"torch-pruning{steps}", {"gone": GONE, "heal": form.heal}),
        ),
        (
            Bar("perplexity", shape.name, f"llmos depth{steps}", 1.0),
            Bar("perplexity", shape.name, f"torch-pruning{steps}", 1.0),
            Bar("latency fp32", shape.name, "", 1 / 1.3),
            Bar("latency bf16", shape.name, "", 1 / 1.3),
        ),
        gauge=None,
    )


ROWS: Mapping[str, Callable[[Form], Row]] = {
    "W4": weights(4, 0.75),
    "W3": weights(3, 0.6),
    "2:4": sparse("2:4", "2:4"),
    "50%": sparse("unstructured", "50%"),
    "structured": structured,
    "memory": memory,
}
