"""The parts of a compression without its proof: what outranks what, learnt scales, unchanged shards, equal bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from llmos_cli.core.workspace import Workspace
from llmos_cli.methods.grid import Codes, Grid, nearest, widest
from llmos_cli.methods.patterns import Target
from llmos_cli.models import headers
from llmos_cli.models.calibrate import Streams
from llmos_cli.models.load import load
from llmos_cli.models.matrices import left_alone, matrices
from llmos_cli.models.rewrite import rewrite
from llmos_cli.operations import prune
from llmos_cli.operations.compression.finish import round_to_stored
from llmos_cli.operations.compression.frozen import scales_free
from llmos_cli.operations.compression.overlap import disjoint, held_out
from llmos_cli.operations.compression.subject import calibration, method, subject
from llmos_cli.operations.compression.sweep import sweep
from llmos_cli.operations.compression.zeroing import zeroing
from llmos_cli.operations.config import resolve
from llmos_cli.tasks.base import Prepared


def test_a_pattern_of_the_command_line_outranks_a_sparsity_of_the_file(workspace: Workspace) -> None:
    flags = {"prune.pattern": "1:4"}
    assert prune.target_of(resolve(workspace, "prune", flags=flags)) == Target(0.75, 1, 4)


def test_sparsegpt_gives_the_same_bytes_twice_and_leaves_other_shards_alone(line: Workspace, tmp_path: Path) -> None:
    for name in ("first", "second"):
        pruned_into(line, tmp_path / name, flags={"prune.method": "sparsegpt", "prune.ignore": ["*.layers.1.*"]})
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "first").iterdir())}
    assert files == {path.name: path.read_bytes() for path in sorted((tmp_path / "second").iterdir())}
    parent = line.checkpoint("base").path
    same = [path.name for path in headers.files(parent) if path.samefile(tmp_path / "first" / path.name)]
    assert len(same) == len(headers.files(parent)) - 1, "only the pruned block's shard was written"


def pruned_into(ws: Workspace, directory: Path, flags: dict[str, Any]) -> None:
    resolved = resolve(ws, "prune", flags=flags)
    module, own = method("prune", resolved.config.prune)
    model = subject(ws, ws.checkpoint("base"), resolved, resolved.config.prune.ignore, emit=lambda event: None)
    batches = calibration(model, 16, module.NEEDS, seed=0).batches
    sweep(model, batches, zeroing(model, module, own, Target(0.5)), module.NEEDS, stage="", emit=lambda event: None)
    round_to_stored(model.model, model.checkpoint.path)
    rewrite(model.model, model.checkpoint.path, directory)


def test_calibration_never_sees_what_is_evaluated_and_says_what_it_saw(line: Workspace) -> None:
    model = subject(line, line.checkpoint("base"), resolve(line, "prune"), [], emit=lambda event: None)
    first, second = (calibration(model, 8, {"norms"}, seed=seed) for seed in (0, 1))
    assert first.record["samples"] == 8 and first.record["sha256"] != second.record["sha256"]
    test = model.exam.prepared.splits["test"]
    seen = {tuple(row) for batch in first.batches for row in batch["input_ids"].tolist()}
    held = {tuple(row) for row in test.batch(range(len(test)))["input_ids"].tolist()}
    assert not seen & held and not any("labels" in batch for batch in first.batches)


def test_little_room_runs_fewer_samples_together_and_records_the_same(line: Workspace) -> None:
    model = subject(line, line.checkpoint("base"), resolve(line, "prune"), [], emit=lambda event: None)
    free, tight = (calibration(model, 8, {"norms"}, seed=0, room=room) for room in (None, 1))
    assert len(free.batches) == 1 and [len(batch["input_ids"]) for batch in tight.batches] == [1] * 8
    assert free.record == tight.record
    assert torch.equal(free.batches[0]["input_ids"], torch.cat([batch["input_ids"] for batch in tight.batches]))


@pytest.mark.parametrize(("method", "together"), [("gptq", 1), ("autoround", 16)])
def test_no_budget_makes_minibatches_smaller(
    line: Workspace, llmos: Any, method: str, together: int, monkeypatch: Any
) -> None:
    """Calibration runs what there is room for; what is learnt from is drawn as the config says."""
    seen: list[int] = []
    looked = Streams.__init__

    def look(streams: Streams, replay: Any, batches: Any, *more: Any) -> None:
        seen.extend(len(batch["input_ids"]) for batch in batches)
        looked(streams, replay, batches, *more)

    monkeypatch.setattr(Streams, "__init__", look)
    sets = ["quantize.memory_budget=0.0001", "quantize.calibration_samples=16", "quantize.autoround.iterations=1"]
    ran = llmos("quantize", "base", "--method", method, *(word for each in sets for word in ("-s", each)))
    assert ran.code == 0, ran.err
    assert seen and set(seen) == {together}
    assert llmos("undo").code == 0


def test_scales_learn_and_codes_stand_still() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 4)])}), nn.Linear(4, 2))
    grid = Grid(2, 4, torch.bfloat16)
    (matrix,) = [found for name, found in matrices(model).items() if "layers" in name]
    wanted_OI = matrix.read()
    wanted_OI[:, 0] = 0
    codes = nearest(wanted_OI, widest(wanted_OI, grid), grid)
    matrix.write(codes.dequantized())
    with scales_free({matrix.name: (matrix, codes, grid)}) as learnt:
        factors = [parameter for name, parameter in model.named_parameters() if name.endswith("factor_OG")]
        assert torch.equal(matrix.layer.weight, codes.dequantized())
        optimizer = torch.optim.Adam(factors, lr=0.02)
        for _ in range(50):
            optimizer.zero_grad()
            (matrix.layer.weight - wanted_OI).square().sum().backward()
            optimizer.step()
    now: Codes = learnt[matrix.name]
    assert torch.equal(now.codes_OI, codes.codes_OI) and now.scale_OG.dtype == torch.bfloat16
    assert error(now, wanted_OI) < error(codes, wanted_OI)
    assert type(matrix.layer) is nn.Linear and torch.equal(matrix.read(), now.dequantized())
    assert not matrix.read()[:, 0].any()


def error(codes: Codes, wanted_OI: Tensor) -> float:
    return float((codes.dequantized() - wanted_OI).square().sum())


def test_a_transposed_layer_is_a_matrix_like_any_other() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    matrix = matrices(model, ignore=["*.c_proj"])["transformer.h.0.attn.c_attn.weight"]
    weight_OI = matrix.read()
    assert weight_OI.shape == (24, 8) and matrix.inputs == 8
    matrix.write(2 * weight_OI)
    torch.testing.assert_close(matrix.parameter.T, 2 * weight_OI)
    assert left_alone(model, ["*.c_proj"]) == {
        "transformer.wte": "embedding",
        "transformer.wpe": "embedding",
        "lm_head": "output layer",
        "transformer.h.0.attn.c_proj": "ignored, as the config says",
        "transformer.h.0.mlp.c_proj": "ignored, as the config says",
    }


def test_memory_is_rounded_as_the_file_will_be(line: Workspace, tmp_path: Path) -> None:
    parent = line.checkpoint("base").path
    model = load(parent)
    for parameter in model.parameters():
        parameter.data.add_(1e-3)
    round_to_stored(model, parent)
    rewrite(model, parent, tmp_path / "copy")
    for (name, mine), theirs in zip(model.named_parameters(), load(tmp_path / "copy").parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("method_name", ["magnitude", "wanda", "sparsegpt"])
def test_every_method_reaches_the_sparsity(line: Workspace, tmp_path: Path, method_name: str) -> None:
    pruned_into(line, tmp_path / "out", flags={"prune.method": method_name})
    found = [matrix.read() for matrix in matrices(load(tmp_path / "out")).values()]
    assert sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found) == pytest.approx(
        0.5, abs=0.01
    )


def test_calibration_takes_another_source_and_records_it(line: Workspace, tmp_path: Path) -> None:
    model = subject(line, line.checkpoint("base"), resolve(line, "prune"), [], emit=lambda event: None)
    source = tmp_path / "own.jsonl"
    texts = [" ".join(f"the {number} wheels of cart {cart}" for number in range(40)) for cart in range(40)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    other = calibration(model, 4, {"norms"}, seed=0, source=str(source), cache=line.cache)
    assert other.record["samples"] == 4 and other.record["passed_over"] == 0
    assert other.record["source"] == str(source) and other.record["data"]
    (book := tmp_path / "book.txt").write_text("\n".join(texts))
    whole = calibration(model, 4, {"norms"}, seed=0, source=str(book), cache=line.cache)
    assert whole.record["samples"] == 4, "a single text cannot be divided, and need not be"
    usual = calibration(model, 4, {"norms"}, seed=0)
    assert other.record["sha256"] != usual.record["sha256"] and "source" not in usual.record


def test_samples_that_share_a_run_of_tokens_with_evaluation_are_passed_over() -> None:
    class Rows:
        def __init__(self, rows_SL: Tensor) -> None:
            self.rows_SL = rows_SL

        def __len__(self) -> int:
            return len(self.rows_SL)

        def batch(self, rows: Any, *, augment_seed: int | None = None) -> dict[str, Tensor]:
            return {"input_ids": self.rows_SL[list(rows)]}

        def bytes(self, rows: Any) -> int:
            return 0

    judged_SL = torch.arange(200).view(2, 100)
    apart_L, shifted_L = torch.arange(1000, 1100), torch.cat([torch.arange(500, 537), torch.arange(50, 113)])
    short_L = torch.cat([torch.arange(600, 669), torch.arange(10, 41)])
    prepared = Prepared({"test": Rows(judged_SL)}, {}, {})
    rows = Rows(torch.stack([apart_L, judged_SL[0], shifted_L, short_L]))
    assert disjoint(rows, [1, 2, 0, 3], held_out(prepared), 4) == ([0, 3], 2)
    assert disjoint(rows, [1, 2, 0, 3], held_out(prepared), 1) == ([0], 2)
