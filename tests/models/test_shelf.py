"""A model that streams computes the bits of one in memory, holds one block at a time, and keeps its activations where it is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmos_cli.models.activations import Spill
from llmos_cli.models.blocks import layers
from llmos_cli.models.calibrate import Keeper, sequential
from llmos_cli.models.load import load
from llmos_cli.models.quantized import write_quantized
from llmos_cli.models.replay import replaying
from llmos_cli.models.save import save
from llmos_cli.models.shelf import Shelf, owned
from llmos_cli.models.statistics import Statistics
from tests.models.conftest import CASES, batch, logits, make, nearest, quantize_all

CPU = torch.device("cpu")
NAMES = [f"{arch}-{task}" for arch, task, _ in CASES]


def shelved(path: Path) -> Shelf:
    shelf = Shelf(path, CPU)
    assert not shelf.lost
    return shelf


def whole_logits(shelf: Shelf, task: str) -> Tensor:
    with ExitStack() as held:
        for index in range(len(shelf.stack)):
            held.enter_context(shelf.held(index))
        return logits(shelf.model, task)


@pytest.mark.parametrize(("arch", "task", "widths"), CASES, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_shelved_model_computes_the_bits_of_the_loaded_one(
    arch: str, task: str, widths: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    save(make(arch, task, widths or None), tmp_path, dtype=dtype)
    shelf = shelved(tmp_path)
    assert torch.equal(whole_logits(shelf, task), logits(load(tmp_path), task))
    inside = {name for index, names in owned(shelf.model, shelf.stack).items() if index is not None for name in names}
    assert inside and all(value.is_meta == (name in inside) for name, value in shelf.model.state_dict().items())


HOLD_CODES = [case for case in CASES if case[0] != "gpt2"]


@pytest.mark.parametrize(("arch", "task", "widths"), HOLD_CODES, ids=[f"{arch}-{task}" for arch, task, _ in HOLD_CODES])
@pytest.mark.parametrize("scheme", ["weights", "w8a8"])
def test_a_quantized_checkpoint_is_shelved_too(
    arch: str, task: str, widths: dict[str, Any], scheme: Any, tmp_path: Path
) -> None:
    model = make(arch, task, widths or None)
    save(model, tmp_path / "dense")
    bits = 8 if scheme == "w8a8" else 4
    codes = quantize_all(model, lambda name, weight: nearest(weight, bits))
    write_quantized(tmp_path / "quantized", tmp_path / "dense", codes, scheme)
    path = tmp_path / "quantized"
    assert torch.equal(whole_logits(shelved(path), task), logits(load(path), task))


GROWTH = """\
import sys
from pathlib import Path
import torch
from llmos_cli import device
from llmos_cli.models.shelf import Shelf

before = device.memory_used()
shelf = Shelf(Path(sys.argv[1]), torch.device("cpu"))
for index in range(len(shelf.stack)):
    with shelf.held(index):
        pass
print(device.memory_used() - before)
"""


def test_neither_the_vocabulary_nor_a_block_that_was_held_takes_memory(tmp_path: Path) -> None:
    wide = {
        "vocab_size": 16000,
        "hidden_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 2816,
    }
    save(make("llama", "causal-lm", wide), tmp_path, dtype=torch.bfloat16)
    ran = subprocess.run([sys.executable, "-c", GROWTH, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 60e6, "6 blocks of 51 MB went by, and the embedding and the head are 66 MB each"


def test_replayed_block_by_block_it_gives_the_logits_of_the_whole(tmp_path: Path) -> None:
    save(make("llama", "causal-lm"), tmp_path, dtype=torch.bfloat16)
    shelf, given = shelved(tmp_path), batch("causal-lm")
    output = None
    with replaying(shelf.model, shelf.stack) as replay:
        replay.check(given, shelf.held)
        for index in range(len(shelf.stack)):
            with shelf.held(index):
                output = replay.run(index, 0, given, output)
        found = replay.run(len(shelf.stack), 0, given, output).logits
    assert torch.equal(found, logits(load(tmp_path), "causal-lm"))


class Counting(Keeper):
    """The blocks of a shelf; the most that were held at once."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.now, self.most = shelf, 0, 0

    @contextmanager
    def held(self, index: int) -> Iterator[None]:
        self.now += index < len(self.shelf.stack)
        self.most = max(self.most, self.now)
        with self.shelf.held(index):
            yield
        self.now -= index < len(self.shelf.stack)


@pytest.mark.parametrize(("arch", "task", "widths"), CASES, ids=NAMES)
def test_calibration_measures_the_same_bits_with_one_block_in_memory(
    arch: str, task: str, widths: dict[str, Any], tmp_path: Path
) -> None:
    save(make(arch, task, widths or None), tmp_path / "model", dtype=torch.bfloat16)
    batches = [batch(task, rows) for rows in (3, 2)]
    plain = swept(load(tmp_path / "model"), batches)
    shelf = shelved(tmp_path / "model")
    keeper = Counting(shelf)
    (tmp_path / "spilled").mkdir()
    streamed = swept(shelf.model, batches, keeper=keeper, spill=Spill(0, tmp_path / "spilled"))
    assert keeper.most == 1 and set(streamed) == set(plain)
    for name, found in plain.items():
        assert found.count == streamed[name].count
        assert torch.equal(found.hessian_II, streamed[name].hessian_II), name
        if found.drift_II is not None:
            assert torch.equal(found.drift_II, streamed[name].drift_II), name


def swept(model: nn.Module, batches: list[dict[str, Tensor]], **how: Any) -> dict[str, Statistics]:
    """Every matrix shrunk by a tenth at its turn."""
    found: dict[str, Statistics] = {}

    def visit(seen: Mapping[str, Statistics]) -> None:
        found.update(seen)
        for name in seen:
            model.get_parameter(name).data.mul_(0.9)

    sequential(model, batches, visit, layers=layers(model), needs={"hessian", "drift"}, **how)
    return found


def test_tensors_past_the_budget_are_files_while_they_are_kept(tmp_path: Path) -> None:
    spill = Spill(100, tmp_path)
    store = spill.store()
    small, large = torch.arange(20.0), (torch.arange(30, dtype=torch.bfloat16), {"shape": (2, 3), "none": None})
    store[0], store[1] = small, large
    assert torch.equal(strided(store, tmp_path), torch.arange(12.0).view(3, 4).T)
    assert len(list(tmp_path.iterdir())) == 1 and spill.left == 20
    assert store[0] is small and torch.equal(store[1][0], large[0]) and store[1][1] == large[1]
    store[0] = None
    assert spill.left == 100
    store[1] = (small, {})
    assert not list(tmp_path.iterdir()) and spill.left == 20 and store[2] is None
    store.clear()
    assert spill.left == 100 and store[1] is None


def test_a_tensor_that_the_files_lack_is_told(tmp_path: Path) -> None:
    model = make("llama", "causal-lm")
    save(model, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model.norm.weight"', '"model.other.weight"'))
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        if "model.norm.weight" in tensors:
            tensors["model.other.weight"] = tensors.pop("model.norm.weight")
            save_file(tensors, file)
    assert Shelf(tmp_path, CPU).lost == ["model.norm.weight"]


def strided(store: Any, folder: Path) -> Tensor:
    """A spilled tensor comes back as it lay in memory."""
    store["other"] = (turned := torch.arange(12.0).view(3, 4).T, torch.zeros(1000))
    found, _ = store["other"]
    assert found.stride() == turned.stride()
    del store["other"]
    return found
