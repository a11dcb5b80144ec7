"""What fuzzing found, and a few seconds of it: each parser gives a value or refuses with an LlmosError, whatever the bytes."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.errors import LlmosError
from tests.fuzz.targets import SLOW, TARGETS, nasty, seeds

DEEP = b"[" * 100_000
FOUND: list[tuple[str, bytes]] = [
    ("a_manifest", DEEP),
    ("a_manifest", b'{"id": "1", "tree": {"a": {"sha256": "1", "size": 1e999}}, "made": {}}'),
    ("of_a_remote", b'\2{"run": "r", "checkpoint": "", "tree": {"a": {"sha256": "", "size": -Infinity}}}'),
    ("of_a_remote", b'\4{"llmos": "remote", "format": Infinity}'),
    ("a_safetensors_header", DEEP),
    ("a_safetensors_header", b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}1234'),
    ("an_index", DEEP),
    ("a_model_config", DEEP),
    ("the_audit_log", DEEP + b"\n\0" + DEEP),
    ("the_audit_log", b'\0{"number": "x", "hash": null}'),
    ("the_audit_log", b'\0{"number": -1, "hash": "x"}'),
    ("the_op_log", DEEP + b"\n"),
    ("the_op_log", b'{"time": 1.51.5}\n'),
    ("events", DEEP + b"\n"),
    ("a_signature", DEEP),
]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_found(name: str, data: bytes) -> None:
    with contextlib.suppress(LlmosError):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_takes_what_it_begins_with(name: str) -> None:
    for seed in seeds(name):
        with contextlib.suppress(LlmosError):
            TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25, deadline=None)
@given(chance=st.randoms(use_true_random=False), noise=st.binary(max_size=8))
def test_refuses_or_reads(name: str, chance: random.Random, noise: bytes) -> None:
    data = chance.choice(seeds(name))
    at = chance.randrange(len(data) + 1)
    for mutated in (nasty(data, chance), data[:at] + noise + data[at + len(noise) :], data[:at]):
        with contextlib.suppress(LlmosError):
            TARGETS[name](mutated)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_ones(name: str) -> None:
    chance = random.Random(7)
    for _ in range(10):
        with contextlib.suppress(LlmosError):
            SLOW[name](nasty(chance.choice(seeds(name)), chance))
