"""Editing a user's YAML in place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core import yaml12
from llmos_cli.core.config_edit import edit, edited
from llmos_cli.errors import ConfigError

CONFIG = """\
# my config
seed: 0          # of everything

train:
  # found by hand
  learning_rate: 2e-3   # AdamW
  schedule: 'linear'
  batch_size:
model: {arch: llama, hidden_size: 64}   # small

data:
  source:
    - builtin:pydoc
    - a.txt
# the end
"""


@pytest.mark.parametrize(
    ("key", "value", "before", "after"),
    [
        ("seed", 3, "seed: 0          # of", "seed: 3          # of"),
        ("train.learning_rate", 0.003, "learning_rate: 2e-3   #", "learning_rate: 0.003   #"),
        ("train.schedule", "cosine", "schedule: 'linear'", "schedule: cosine"),
        ("train.batch_size", 8, "batch_size:\n", "batch_size: 8\n"),
        ("model.hidden_size", 128, "hidden_size: 64}", "hidden_size: 128}"),
        ("model.num_layers", 2, "hidden_size: 64}", "hidden_size: 64, num_layers: 2}"),
        ("model.rope.theta", 2, "hidden_size: 64}", "hidden_size: 64, rope: {theta: 2}}"),
        ("train.max_steps", 5, "  batch_size:\n", "  batch_size:\n  max_steps: 5\n"),
        ("train.muon.momentum", 0.9, "  batch_size:\n", "  batch_size:\n  muon:\n    momentum: 0.9\n"),
        ("data.task", "causal-lm", "    - a.txt\n", "    - a.txt\n  task: causal-lm\n"),
        ("data.source", "b", "  source:\n    - builtin:pydoc\n    - a.txt\n", "  source:\n    b\n"),
        ("prune.sparsity", 0.5, "    - a.txt\n", "    - a.txt\nprune:\n  sparsity: 0.5\n"),
    ],
)
def test_only_that_value_changes(key, value, before, after):
    assert CONFIG.count(before) == 1
    assert edited(CONFIG, {key: value}) == CONFIG.replace(before, after)


def test_an_empty_file_gains_the_key():
    assert edited("", {"train.learning_rate": 0.003}) == "train:\n  learning_rate: 0.003\n"
    assert edited("# only a comment", {"seed": 1}) == "# only a comment\nseed: 1\n"


def test_a_file_is_rewritten_whole(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(CONFIG)
    edit(path, {"seed": 1, "train.learning_rate": 0.01})
    assert yaml12.parse(path.read_text(), "").plain()["train"]["learning_rate"] == 0.01
    assert "# AdamW" in path.read_text()


def test_what_cannot_be_edited_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("train: {a: 1}\ntrain: {b: 2}\n")
    with pytest.raises(ConfigError, match="given twice"):
        edit(path, {"train.a": 2})
    assert path.read_text() == "train: {a: 1}\ntrain: {b: 2}\n"


scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=12)


@given(value=scalars, key=st.sampled_from(["seed", "train.learning_rate", "model.arch", "new.key", "train.batch_size"]))
def test_any_scalar_reads_back(value, key):
    tree = yaml12.parse(edited(CONFIG, {key: value}), "").plain()
    for part in key.split("."):
        tree = tree[part]
    assert tree == value
