"""Measurements: against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from llmos_cli import catalog
from llmos_cli.methods import turns
from llmos_cli.methods.eval import Subject, decoding, latency, memory, parameters, size, sparsity


class Answer:
    def __init__(self, logits):
        self.logits = logits


class Two(nn.Module):
    """Two linear layers and a ReLU between: 100 -> 50 -> 10."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(100, 50), nn.Linear(50, 10)

    def forward(self, x):
        return Answer(self.head(torch.relu(self.first(x))))


class Rows:
    """`count` samples of 100 numbers, one label each."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def batch(self, rows, *, augment_seed=None):
        return {"x": torch.ones(len(rows), 100), "labels": torch.zeros(len(rows), dtype=torch.int64)}

    def bytes(self, rows):
        return 0


@pytest.fixture
def subject(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "tokenizer.json").write_bytes(b"0" * 500)
    return Subject(Two(), Rows(20), tmp_path, batch_size=8, base_parameters=5560)


def test_each_says_what_it_measures_and_in_which_unit():
    modules = [method.load() for method in catalog.methods("eval").values()]
    metrics = [metric for module in modules for metric in module.UNITS]
    assert len(metrics) == len(set(metrics))
    assert {"parameters", "size", "compression", "sparsity", "latency_p50", "throughput", "peak_memory"} <= set(metrics)
    assert {module.__name__.rpartition(".")[2] for module in modules if module.TIMED} == {
        "decoding", "latency", "memory",
    }  # fmt: skip


def test_parameters(subject):
    assert parameters.measure(subject) == {"parameters": 100 * 50 + 50 + 50 * 10 + 10}


def test_tied_parameters_count_once():
    model = Two()
    model.also = model.first
    assert parameters.measure(Subject(model, Rows(1), None, 1, 1)) == {"parameters": 5560}


def test_size_is_of_the_weights_and_the_ratio_against_two_bytes_each(subject):
    assert size.measure(subject) == {"size": 1000, "compression": 2 * 5560 / 1000}


def test_sparsity_leaves_the_head_out(subject):
    with torch.no_grad():
        subject.model.first.weight[:, :25] = 0
        subject.model.head.weight.zero_()
    assert sparsity.measure(subject) == {"sparsity": 0.25}


def test_peak_memory_counts_what_lives_at_once(subject):
    """Weights and the batch; then the hidden layer before and after the ReLU; the logits come when one of them is gone."""
    weights, batch = 4 * 5560, 8 * 100 * 4 + 8 * 8
    assert memory.measure(subject) == {"peak_memory": weights + batch + 2 * (8 * 50 * 4)}


def test_what_was_freed_counts_no_more(subject):
    """Ten layers in a row need no more memory than two."""
    deep = Two()
    deep.first = nn.Sequential(nn.Linear(100, 50), *(nn.ReLU() for _ in range(10)))
    once = memory.measure(subject)["peak_memory"]
    assert memory.measure(Subject(deep, Rows(20), subject.path, 8, 5560))["peak_memory"] == once


def test_latency_and_throughput(subject):
    measured = latency.measure(subject)
    assert 0 < measured["latency_best"] <= measured["latency_p50"] <= measured["latency_p95"]
    assert measured["throughput"] > 0


def test_models_are_measured_in_turns(subject, monkeypatch):
    """Every turn has one pass of each, and they change places: ABBA."""
    monkeypatch.setattr(turns, "SECONDS", 0.05)
    monkeypatch.setattr(turns, "MOST", turns.LEAST)
    ran = []
    taken = turns.durations(
        [[lambda: ran.append("a")], [lambda: ran.append("b"), lambda: ran.append("B")]], subject.model.device
    )
    assert "".join(ran) == "abaB" + "ab" + "Ba" + "ab" + "Ba" + "ab"
    assert [len(each) for each in taken] == [turns.LEAST, turns.LEAST]


def test_a_model_of_twice_the_work_takes_longer(subject):
    heavy = Two()
    heavy.first = nn.Sequential(nn.Linear(100, 4000), nn.Linear(4000, 4000), nn.Linear(4000, 50))
    light, loaded = latency.compare([subject, Subject(heavy, Rows(20), subject.path, 8, 5560)])
    assert light["latency_best"] < loaded["latency_best"]


class Cache:
    """Notes what it is asked to append."""

    def __init__(self):
        self.asked = []

    def forward(self, tokens_BL, positions_BL, first, *, every):
        self.asked.append((tokens_BL.tolist(), positions_BL.tolist(), first, every))


def test_decoding_asks_for_one_token_after_half_a_sample():
    cache = Cache()
    one = decoding.step(cache, torch.tensor([[7, 8, 9], [4, 5, 6]]))
    one()
    assert cache.asked == [
        ([[7], [4]], [[0], [0]], 0, False),
        ([[8], [5]], [[1], [1]], 0, False),
    ]
    assert decoding.measure(Subject(Two(), Rows(2), None, 2, 1)) == {}, "a classifier is not decoded"


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 3), (0.95, 5), (1.0, 5)])
def test_percentiles(share, value):
    assert turns.percentile([5, 1, 4, 2, 3], share) == value
