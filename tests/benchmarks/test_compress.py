"""The comparison with the peers: its judge and its intervals against slow references, its verdicts, and a cell from end to end."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.compress import table
from benchmarks.compress.cells import Cell, Measured, watched
from benchmarks.compress.judge import judge
from benchmarks.compress.pace import pace
from benchmarks.compress.rows import Bar, Row


def scores(mean: float, spread: float, sequences: int = 200, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(1, spread, (sequences, 1))
    return (mean * noise * np.ones((1, 8))).astype(np.float32)


def measured(name: str, kl_SL: np.ndarray, *, cpu: float = 10.0, peak: int = 100, run: str = "now") -> Measured:
    return Measured(Cell("llmos", name, {}), 0, {"kl_SL": kl_SL}, cpu, cpu, peak, run, {})


def verdicts(*cells: Measured, bars: list[Bar], gauge: str | None = "rtn") -> list[str]:
    found = {(cell.cell.name, 0): cell for cell in cells}
    row = Row("W4", tuple(cell.cell for cell in cells), tuple(bars), gauge)
    return [judgement.verdict for judgement in table.judged(row, found, [0])]


RTN = measured("rtn", scores(1.0, 0.1))
WITHIN = Bar("KL", "ours", "peer", 0.75)


def test_a_ratio_is_of_the_same_sequences():
    peer_SL = scores(0.5, 0.8)
    halved = table.ratio(peer_SL / 2, peer_SL)
    assert (halved.value, halved.low, halved.high) == pytest.approx((0.5, 0.5, 0.5))
    apart = table.ratio(scores(0.25, 0.8, seed=1), peer_SL)
    assert apart.high - apart.low > 0.1


def test_the_interval_is_that_of_a_slow_bootstrap():
    kl_SL = scores(0.5, 0.5, sequences=40)
    random, means = np.random.default_rng(7), []
    for _ in range(4000):
        drawn = [kl_SL[random.integers(40)] for _ in range(40)]
        means.append(np.mean(drawn))
    found = table.mean(kl_SL)
    assert found.value == pytest.approx(kl_SL.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=0.02)


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "holds"), (0.9, "FAILS"), (0.75, "undecided")])
def test_a_bar_holds_with_its_whole_interval(share, verdict):
    peer = measured("peer", scores(0.5, 0.1))
    ours = measured("ours", scores(0.5 * share, 0.1, seed=1))
    assert verdicts(RTN, ours, peer, bars=[WITHIN]) == [verdict]


def test_noise_does_not_decide():
    peer, ours = measured("peer", scores(0.5, 0.1)), measured("ours", scores(0.1, 0.1))
    noisy = measured("rtn", scores(1.0, 0.8))
    assert verdicts(noisy, ours, peer, bars=[WITHIN]) == ["undecided"]
    assert verdicts(ours, peer, bars=[WITHIN]) == ["undecided"]


def test_times_are_compared_within_one_run_alone():
    bar = Bar("time", "ours", "peer", 0.7)
    peer, ours = measured("peer", scores(1, 0.1), cpu=10), measured("ours", scores(1, 0.1), cpu=6)
    assert verdicts(ours, peer, bars=[bar]) == ["holds"]
    earlier = measured("ours", scores(1, 0.1), cpu=6, run="yesterday")
    assert verdicts(earlier, peer, bars=[bar]) == ["undecided"]
    assert verdicts(measured("ours", scores(1, 0.1), cpu=8), peer, bars=[bar]) == ["FAILS"]


def test_memory_needs_no_judge():
    bar = Bar("peak memory", "ours", "peer", 0.5)
    peer, ours = measured("peer", scores(1, 0.1), peak=100), measured("ours", scores(1, 0.1), peak=49)
    assert verdicts(ours, peer, bars=[bar], gauge=None) == ["holds"]


def test_a_bar_without_both_of_its_cells_is_not_judged():
    assert verdicts(RTN, measured("ours", scores(1, 0.1)), bars=[WITHIN]) == []


@pytest.fixture
def two_models(tmp_path: Path) -> tuple[Path, Path]:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    parent = LlamaForCausalLM(config)
    parent.save_pretrained(tmp_path / "parent")
    with torch.no_grad():
        for parameter in parent.model.layers.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    parent.save_pretrained(tmp_path / "result")
    return tmp_path / "parent", tmp_path / "result"


def test_the_judge_says_what_the_definition_says(two_models, tmp_path):

    tokens_SL = np.random.default_rng(0).integers(50, size=(11, 6))
    np.save(tmp_path / "held-out.npy", tokens_SL)
    kl_SL, nll_SL = judge(*two_models, tmp_path / "held-out.npy")
    models = [LlamaForCausalLM.from_pretrained(path).eval() for path in two_models]
    for s in range(11):
        p_LV, q_LV = (
            model(torch.from_numpy(tokens_SL[s : s + 1])).logits[0].detach().double().softmax(-1) for model in models
        )
        for at in range(6):
            slow = sum(float(p) * math.log(float(p) / float(q)) for p, q in zip(p_LV[at], q_LV[at], strict=True))
            assert kl_SL[s, at] == pytest.approx(slow, rel=1e-3, abs=1e-6)
        for at in range(5):
            assert nll_SL[s, at] == pytest.approx(-math.log(float(q_LV[at, tokens_SL[s, at + 1]])), rel=1e-4)
    again, _ = judge(*two_models, tmp_path / "held-out.npy")
    assert np.array_equal(again, kl_SL)


def test_the_judge_finds_no_distance_of_a_model_to_itself(two_models, tmp_path):
    np.save(tmp_path / "held-out.npy", np.random.default_rng(0).integers(50, size=(3, 6)))
    kl_SL, _ = judge(two_models[0], two_models[0], tmp_path / "held-out.npy")
    assert np.abs(kl_SL).max() < 1e-6


def test_a_cells_memory_and_time_are_its_own(tmp_path):
    program = "import time; block = bytearray(200_000_000); end = time.process_time() + .5\nwhile time.process_time() < end: pass"
    used = watched([sys.executable, "-c", program], tmp_path / "log.txt")
    assert 200e6 < used["peak"] < 250e6
    assert 0.5 <= used["cpu_seconds"] < 5


def test_a_cell_that_fails_says_how(tmp_path):
    with pytest.raises(SystemExit, match="boom"):
        watched([sys.executable, "-c", "raise ValueError('boom')"], tmp_path / "log.txt")


@pytest.mark.slow
def test_a_cell_goes_from_the_model_to_its_kl_and_is_kept(two_models, tmp_path, monkeypatch):
    """Round-to-nearest of a tiny model by the very operation of `llmos quantize`, judged, and read from the cache the second time."""
    from benchmarks.compress import cells, rows
    from benchmarks.compress.material import material

    tokenizer(two_models[0])
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"the {number}th line of a text that is about nothing at all " * 8)
    shared = material(two_models[0], tmp_path / "cache", sources=str(text), length=16, samples=4, held_out=8, seeds=1)
    cell = rows.ours("quantize", "llmos gptq", rows.Form(group_size=16, heal=0, samples=4), method="gptq", bits=4)
    found = cells.measure(cell, shared, 0, run="first", again=False)
    assert found.scores["kl_SL"].shape == np.load(shared.held_out).shape
    assert 0 < found.scores["kl_SL"].mean() < 1
    assert found.report["versions"]["torch"] == torch.__version__
    with monkeypatch.context() as patched:
        patched.setattr(cells, "watched", lambda *_: pytest.fail("a finished cell ran again"))
        assert cells.measure(cell, shared, 0, run="second", again=False).run == "first"
    more = material(two_models[0], tmp_path / "cache", sources=str(text), length=16, samples=4, held_out=12, seeds=1)
    assert cells.measure(cell, more, 0, run="third", again=False).run == "first", "judged again, not made again"
    for scores in shared.folder.glob("cells/*/judged-*"):
        scores.unlink()
    (Path(found.report["model"]) / "config.json").unlink()  # as a peer's model goes once it is judged
    (Path(found.report["model"]) / "model.safetensors.index.json").unlink(missing_ok=True)
    assert cells.measure(cell, shared, 0, run="fourth", again=False).run == "fourth"


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=50, special_tokens=["<unk>", "<end>"])
    words.train_from_iterator(["the line of a text that is about nothing at all"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 50


def cut(name: str, nll: float, parameters: int, pace: float = 1.0) -> Measured:
    random = np.random.default_rng(3)
    nll_SL = (nll + random.normal(0, 0.01, (100, 8))).astype(np.float32)
    pace_R = pace * random.normal(1, 0.02, 60)
    pace_R[0] = 30.0  # something else on the machine held it up
    found = {"kl_SL": nll_SL, "nll_SL": nll_SL, "pace_fp32_R": pace_R, "pace_bf16_R": pace_R}
    return Measured(Cell("llmos", name, {}), 0, found, 1.0, 1.0, 1, "now", {"parameters": parameters})


@pytest.mark.parametrize(
    ("nll", "kept", "verdict"), [(3.2, 70, "holds"), (2.8, 70, "FAILS"), (2.8, 79, "undecided"), (3.2, 60, "holds")]
)
def test_a_baseline_that_kept_more_decides_nothing(nll: float, kept: int, verdict: str):
    bar = Bar("perplexity", "ours", "depth", 1.0)
    assert verdicts(cut("ours", 3.0, 70), cut("depth", nll, kept), bars=[bar], gauge=None) == [verdict]


def test_latency_is_by_the_parent_and_one_held_up_turn_does_not_count():
    bars = [Bar("latency fp32", "ours", "", 1 / 1.3), Bar("latency bf16", "ours", "", 0.5)]
    assert verdicts(cut("ours", 3.0, 70, pace=0.7), bars=bars, gauge=None) == ["holds", "FAILS"]


def test_a_model_of_half_the_blocks_decodes_in_less_time_than_its_parent():
    sizes = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    parent, half = (LlamaForCausalLM(LlamaConfig(num_hidden_layers=depth, **sizes)).eval() for depth in (8, 4))
    tokens_L = torch.arange(64)
    assert np.median(pace([half, parent], tokens_L[:8], tokens_L[8:])) < 0.85
    assert np.median(pace([parent, parent], tokens_L[:8], tokens_L[8:])) == pytest.approx(1, abs=0.15)
