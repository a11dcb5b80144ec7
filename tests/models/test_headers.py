from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llmos_cli.errors import Corrupt
from llmos_cli.models import headers


def test_a_header_says_names_types_shapes_and_bytes(tmp_path: Path) -> None:
    save_file({"b": torch.ones(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    found = headers.of_directory(tmp_path)
    assert {name: (e.dtype, e.shape, e.bytes) for name, e in found.items()} == {
        "a": ("BF16", (4,), 8),
        "b": ("F32", (2, 3), 24),
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"{,}",
        struct.pack("<Q", 2) + b"{}extra",
    ],
)
def test_nonsense_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(Corrupt, match=r"x\.safetensors is corrupt"):
        headers.of_directory(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        7,
    ],
)
def test_an_entry_that_does_not_fit_is_corrupt(tmp_path: Path, entry: object) -> None:
    written(tmp_path / "x.safetensors", json.dumps({"a": entry}))
    with pytest.raises(Corrupt) as raised:
        headers.of_directory(tmp_path)
    assert len(raised.value.message) < 500


ENTRY = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


def written(file: Path, header: str) -> None:
    """With four bytes of weights."""
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))


@pytest.mark.parametrize("name", ["a\\nerror: fake\\u001b[31m", "a" * 5000])
@pytest.mark.parametrize("place", ["tensor", "indexed", "file"])
def test_a_name_that_no_line_could_hold_is_corrupt(tmp_path: Path, name: str, place: str) -> None:
    """What a stranger calls his tensors and files stands in sentences on a terminal."""
    said = {"tensor": "a", "indexed": "a", "file": "x.safetensors", place: name}
    written(tmp_path / "x.safetensors", f'{{"{said["tensor"]}": {ENTRY}}}')
    (tmp_path / headers.INDEX).write_text(f'{{"weight_map": {{"{said["indexed"]}": "{said["file"]}"}}}}')
    with pytest.raises(Corrupt) as raised:
        headers.of_directory(tmp_path)
    assert raised.value.message.isprintable() and len(raised.value.message) < 500


def test_a_name_said_twice_is_corrupt(tmp_path: Path) -> None:
    written(tmp_path / "x.safetensors", f'{{"a": {ENTRY}, "a": {ENTRY}}}')
    with pytest.raises(Corrupt, match="its header is not JSON"):
        headers.of_directory(tmp_path)


def test_a_tensor_in_two_files_is_corrupt(tmp_path: Path) -> None:
    for name in ("x", "y"):
        written(tmp_path / f"{name}.safetensors", f'{{"a": {ENTRY}}}')
    with pytest.raises(Corrupt, match=r"'a' is in x\.safetensors too"):
        headers.of_directory(tmp_path)


def test_an_index_names_no_pickle(tmp_path: Path) -> None:
    (tmp_path / headers.INDEX).write_text('{"weight_map": {"x": "evil.bin"}}')
    with pytest.raises(Corrupt, match=r"it names 'evil\.bin', which is no safetensors file"):
        headers.of_directory(tmp_path)


def test_a_tensor_is_where_the_index_says(tmp_path: Path) -> None:
    for name in ("x", "y"):
        written(tmp_path / f"{name}.safetensors", f'{{"{name}": {ENTRY}}}')
    said = {"x": "x.safetensors", "y": "y.safetensors"}
    (tmp_path / headers.INDEX).write_text(json.dumps({"weight_map": said}))
    assert set(headers.of_directory(tmp_path)) == {"x", "y"}
    (tmp_path / headers.INDEX).write_text(json.dumps({"weight_map": {**said, "x": "y.safetensors"}}))
    with pytest.raises(Corrupt, match=r"it says 'x' is in 'y\.safetensors', which holds no such tensor"):
        headers.of_directory(tmp_path)


@pytest.mark.parametrize("told", ['{"format": ["pt"]}', "[]", "null"])
def test_a_file_says_texts_of_itself(tmp_path: Path, told: str) -> None:
    written(tmp_path / "x.safetensors", f'{{"__metadata__": {told}, "a": {ENTRY}}}')
    with pytest.raises(Corrupt, match="not names and texts"):
        headers.of_directory(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_any_changed_byte_of_the_header_is_read_or_corrupt_never_a_crash(
    tmp_path: Path, position: int, value: int
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, file)
    content = bytearray(file.read_bytes())
    content[position % len(content)] = value
    file.write_bytes(content)
    try:
        assert headers.of_directory(tmp_path)
    except Corrupt as problem:
        assert problem.exit_code == 5


def test_an_index_may_not_leave_its_directory(tmp_path: Path) -> None:
    (tmp_path / headers.INDEX).write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(Corrupt, match="outside the directory"):
        headers.of_directory(tmp_path)
