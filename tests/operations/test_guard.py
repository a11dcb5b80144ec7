"""What a proof must say for a result to be committed (each guard at its bound, a hair past it, and where nothing was measured), and what is
told of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llmos_cli import tasks
from llmos_cli.errors import GateFailed, LlmosError
from llmos_cli.models.conformance import OTHER_BITS, Conformance
from llmos_cli.operations.compression.result import CompressResult
from llmos_cli.operations.proof import Bytes, Parity, Proof, guard
from llmos_cli.operations.served import NOISE, Speed
from llmos_cli.tasks.scoring import Interval

BYTES = Bytes(layers=10, layers_bf16=10, total=20, total_bf16=20)


def proof(metric: str, before: float, after: float, kl: float = 0.01) -> Proof:
    return Proof(
        Parity(0.0, 1.0, "transformers"),
        "test",
        8,
        {metric: at(before)},
        {metric: at(after), "kl_parent": at(kl)},
        BYTES,
        BYTES,
        speed=Speed({"latency_best": 2.0}, {"latency_best": 1.0}, "latency_best", 16),
    )


def at(value: float) -> Interval:
    """An interval that is wide: guards judge the value."""
    return Interval(value, value - 10, value + 10)


def judged(found: Proof, task: str, **bounds: Any) -> str:
    """Empty where it may be committed."""
    try:
        guard(found, tasks.load(task), **{"max_kl": None, "max_drop": None, **bounds})
    except GateFailed as refusal:
        return refusal.message
    return ""


@pytest.mark.parametrize(
    ("task", "before", "after"), [("causal-lm", 3.0, 3.5), ("image-classification", 0.75, 0.25)]
)  # bits per byte and accuracy: one is worse where it rises, the other where it falls
def test_a_drop_is_a_change_for_the_worse_in_the_metrics_own_unit(task: str, before: float, after: float) -> None:
    metric = tasks.load(task).metric
    worse, better = proof(metric, before, after), proof(metric, after, before)
    assert judged(worse, task, max_drop=0.5) == ""
    assert judged(worse, task, max_drop=0.49) == (
        f"{metric} is 0.5 worse than the parent's, more than --max-drop 0.49: nothing was committed"
    )
    assert judged(better, task, max_drop=0.0) == ""
    assert judged(proof(metric, before, math.nan), task, max_drop=9.0) != ""
    assert judged(worse, task) == ""


@pytest.mark.parametrize(
    ("operation", "refused", "hinted"),
    [
        ("compress", (f"W3A16: {OTHER_BITS}", f"W5A16: {OTHER_BITS}"), True),
        ("compress", (f"W3A16: {OTHER_BITS}", "embeddings are coded"), False),
        ("compress", (), False),
        ("quantize", (f"W3A16: {OTHER_BITS}",), False),
    ],
)
def test_bits_that_vllm_lacks_come_with_a_way_out(operation: str, refused: tuple[str, ...], hinted: bool) -> None:
    """Where bits are all that is wrong, and who chose them was the search."""
    found = replace(proof("bits_per_byte", 3.0, 3.0), conformance=Conformance("W3A16", refused=refused))
    result = CompressResult("a" * 64, "b" * 64, "run", "main", operation, "gptq", "3 bits", 2, {}, 0, found)
    remarks = result.view().parts[-1].lines  # type: ignore[attr-defined]
    assert ("`-s compress.bits=[4,8]` chooses among what vLLM runs" in remarks) is hinted


def test_a_kl_is_kept_at_its_bound() -> None:
    found = proof("bits_per_byte", 3.0, 3.0, kl=0.02)
    assert judged(found, "causal-lm", max_kl=0.02) == ""
    assert judged(found, "causal-lm", max_kl=0.019) == (
        "KL to the parent is 0.02, above --max-kl 0.019: nothing was committed"
    )
    assert judged(proof("bits_per_byte", 3.0, 3.0, kl=math.nan), "causal-lm", max_kl=1.0) != ""


def test_a_latency_is_kept_but_for_what_two_timings_of_one_model_differ_by() -> None:
    found = proof("bits_per_byte", 3.0, 3.0)
    assert judged(found, "causal-lm", max_latency=0.5) == ""
    assert judged(found, "causal-lm", max_latency=0.5001 / NOISE) == ""
    assert judged(found, "causal-lm", max_latency=0.47) == (
        "the proof measured 0.50 of the parent's latency, not 0.47: nothing was committed"
    )


def test_a_latency_that_was_not_measured_is_not_kept() -> None:
    unmeasured = replace(proof("bits_per_byte", 3.0, 3.0), speed=None, unmeasured="latency was not measured: no room")
    assert judged(unmeasured, "causal-lm") == ""
    assert judged(unmeasured, "causal-lm", max_latency=0.9) == (
        "latency was not measured: no room: nothing was committed"
    )


def test_a_divergence_that_is_no_number_keeps_no_guard_and_is_refused_without_one() -> None:
    with pytest.raises(LlmosError, match="KL to the parent is nan"):
        guard(proof("bits_per_byte", 3.0, 3.0, kl=math.nan), tasks.load("causal-lm"), max_kl=None, max_drop=None)


@pytest.mark.parametrize("difference", [math.nan, math.inf, 0.5])
def test_logits_that_come_back_as_others_do_not_hold(difference: float) -> None:
    assert Parity(0.0, 1.0, "transformers").holds and not Parity(difference, 1.0, "transformers").holds
