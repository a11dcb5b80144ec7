"""`llmos compress` on tiny trained models: a target is reached, proven, recorded, or refused with the nearest that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.records import EVENTS, read_events
from llmos_cli.core.workspace import Workspace
from llmos_cli.methods import turns
from llmos_cli.models import headers
from llmos_cli.models.kernels import native
from llmos_cli.operations.compression import shapes
from llmos_cli.operations.served import NOISE

QUICK = (
    "-s", "data.max_eval_samples=4", "-s", "compress.group_size=32", "-s", "compress.calibration_samples=8",
    "-s", "compress.probe_samples=4", "-s", "compress.cuts=[0.3]",
)  # fmt: skip


def weight_of(ws: Workspace, rev: str) -> int:
    return sum(file.stat().st_size for file in headers.files(ws.checkpoint(rev).path))


def test_a_share_of_the_size(base: Any, llmos: Any) -> None:
    ws = base()
    before = weight_of(ws, "HEAD")
    done = llmos("compress", "--target-ratio", "0.75", *QUICK, "--json")
    assert done.code == 0, done.err
    assert weight_of(ws, "HEAD") <= 0.75 * before
    assert [point["chosen"] for point in done.json["frontier"]].count(True) == 1
    assert done.json["result"]["proof"]["parity"]["difference"] < 1e-4
    made = ws.manifest(ws.resolve()).made
    assert made.operation == "compress" and made.parents == (ws.resolve("HEAD~1"),)
    assert made.config["compress"]["chosen"]["layers"]
    assert "compress to ratio 0.75" in llmos("log").out
    (kept,) = [event for event in read_events(ws.runs.list()[-1].path / EVENTS)[0] if event["event"] == "proven"]
    assert kept["told"]["frontier"] == done.json["frontier"] and kept["checkpoint"] == ws.resolve()
    assert Path(done.json["picture"]).is_file()


def test_the_smallest_under_a_kl_keeps_it_on_the_samples_that_prove_it(base: Any, llmos: Any) -> None:
    ws = base()
    few = (*QUICK, "-s", "compress.probe_samples=1", "-s", "compress.latency=false")
    loose = llmos("compress", "--target-kl", "1", *few, "--json")
    assert loose.code == 0, loose.err
    smallest, probed, proven = weight_of(ws, "HEAD"), chosen(loose)["kl"], proven_kl(loose)
    assert probed < proven == chosen(loose)["proven"], "the samples that the search sees must be the easier ones here"
    bound = (probed + proven) / 2
    strict = llmos("compress", "HEAD~1", "--target-kl", str(bound), *few, "--json")
    assert strict.code == 0, strict.err
    assert "its proof, on other samples, has a KL of" in strict.err
    assert weight_of(ws, "HEAD") > smallest
    assert max(chosen(strict)["kl"], proven_kl(strict)) <= bound
    missed = [point for point in strict.json["frontier"] if point["proven"] is not None and not point["chosen"]]
    assert [point["proven"] for point in missed] == [proven]


def proven_kl(done: Any) -> float:
    found: float = done.json["result"]["proof"]["after"]["kl_parent"]["value"]
    return found


@pytest.mark.parametrize("template", ["causal-lm", pytest.param("text-classification", marks=pytest.mark.slow)])
def test_the_residual_stream_is_tried_and_where_it_cannot_be_cut_the_search_goes_on(
    base: Any, llmos: Any, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "WORTH", 0.0)
    base(template)
    done = llmos("compress", "--target-kl", "1", *QUICK, "-s", "compress.cuts=[0.4]", "--json")
    assert done.code == 0, done.err
    told = "hidden_size 32 -> " if template == "causal-lm" else "cannot be made narrower"
    assert told in done.err, done.err
    hows = {point["how"] for point in done.json["frontier"] if point["cut"]}
    assert len(hows) == 1 and hows != {""}


def chosen(done: Any) -> dict[str, Any]:
    found: dict[str, Any] = next(point for point in done.json["frontier"] if point["chosen"])
    return found


def test_out_of_reach(base: Any, llmos: Any) -> None:
    ws = base()
    before = ws.resolve()
    refused = llmos("compress", "--target-size", "1kB", *QUICK)
    assert refused.code == 3
    assert "the nearest that was found has" in refused.err and "hint" in refused.err
    assert ws.resolve() == before


@pytest.mark.slow
def test_a_latency_out_of_reach_is_timed_once_a_stock_and_built_never(base: Any, llmos: Any) -> None:
    ws = base()
    before = ws.resolve()
    refused = llmos("compress", "--target-latency", "0.001", *QUICK)
    assert refused.code == 3
    assert "0% cut out, 2 bits: " in refused.err and "30% cut out, 2 bits: " in refused.err
    assert "of the parent's latency" in refused.err and "compress.embeddings=true" in refused.err
    assert "measure sensitivities" not in refused.err and "healed" not in refused.err
    assert ws.resolve() == before


DEEP = """\
model: {arch: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 6, num_attention_heads: 2}
data: {task: causal-lm, source: "builtin:pydoc", sequence_length: 32, max_samples: 64, max_eval_samples: 8, tokenizer: {vocab_size: 300}}
train: {max_steps: 2, batch_size: 4}
"""


def test_a_latency_is_reached_by_leaving_blocks_out(base: Any, llmos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So much goes that widths alone do not hold it, and fewer blocks are what is quicker at this size."""
    monkeypatch.setattr(turns, "SECONDS", 0.1)
    ws = base("causal-lm", DEEP)
    sets = {
        "compress.bits": [8],
        "compress.cuts": [0.75],
        "compress.calibration_samples": 2,
        "data.max_eval_samples": 2,
    }
    done = llmos("compress", "--target-latency", "0.9", *(f"-s{key}={value}" for key, value in sets.items()), "--json")
    assert done.code == 0, done.err
    speed = done.json["result"]["proof"]["speed"]
    assert speed["after"][speed["headline"]] <= NOISE * 0.9 * speed["before"][speed["headline"]]
    assert ws.manifest(ws.resolve()).made.parents == (ws.resolve("HEAD~1"),)
    assert [point["latency"] <= 0.9 for point in done.json["frontier"] if point["chosen"]] == [True]
    assert all(point["latency"] for point in done.json["frontier"])
    # What is timed twice may be fast enough the first time only: then its size and loss are known.
    unmeasured = [point for point in done.json["frontier"] if point["kl"] is None]
    assert all(point["size"] is None and point["latency"] > 0.9 for point in unmeasured)


WIDE = DEEP.replace(
    "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 6", "hidden_size: 384, num_hidden_layers: 2"
)


@pytest.mark.skipif(not native.has_weights(), reason=f"needs the tool: {native.obstacle()}")
def test_a_latency_is_reached_by_bits_that_a_kernel_is_faster_with(
    base: Any, llmos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SECONDS", 0.2)
    ws = base("causal-lm", WIDE)
    sets = {"compress.cuts": [], "compress.calibration_samples": 2, "data.max_eval_samples": 2}
    done = llmos("compress", "--target-latency", "0.9", *(f"-s{key}={value}" for key, value in sets.items()), "--json")
    assert done.code == 0, done.err
    assert chosen(done)["latency"] <= 0.9
    layers = ws.manifest(ws.resolve()).made.config["compress"]["chosen"]["layers"]
    assert set(layers.values()) <= {4, 8}, "2 and 3 bits are held as 4 are, 5 and 6 as 8"


def test_a_guard_holds(base: Any, llmos: Any) -> None:
    ws = base()
    before = ws.resolve()
    refused = llmos("compress", "--target-ratio", "0.75", "--max-kl", "0", *QUICK, "-s", "compress.latency=false")
    assert refused.code == 3 and "--max-kl" in refused.err
    assert ws.resolve() == before


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ((), "not none"),
        (("--target-kl", "1", "--target-ratio", "0.5"), "--target-ratio and --target-kl"),
        (("--target-ratio", "1.5"), "target_ratio"),
        (("--target-size", "many"), "target_size"),
        (("--target-latency", "0.9", "-s", "compress.latency=false"), "cannot be proven with compress.latency off"),
        (("--target-ratio", "0.5", "-s", "compress.group_size=0"), "a group of 0 inputs means nothing"),
    ],
)
def test_one_target(base: Any, llmos: Any, targets: tuple[str, ...], told: str) -> None:
    base()
    refused = llmos("compress", *targets)
    assert refused.code == 2 and told in refused.err


def test_a_dry_run_says_what_there_is_to_choose_from(base: Any, llmos: Any) -> None:
    ws = base()
    before = ws.resolve()
    plan = llmos("compress", "--target-ratio", "0.5", "--dry-run", "--json")
    assert plan.code == 0, plan.err
    assert plan.json["sizes"][0][1] < plan.json["sizes"][0][2] < plan.json["size"]
    assert ws.resolve() == before


@pytest.mark.slow
@pytest.mark.parametrize("template", ["image-classification", "text-classification", "token-classification"])
def test_every_task(base: Any, llmos: Any, template: str) -> None:
    ws = base(template)
    done = llmos("compress", "--target-kl", "0.5", *QUICK, "--json")
    assert done.code == 0, done.err
    assert weight_of(ws, "HEAD") < weight_of(ws, "HEAD~1")
