from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmos_cli.data import cache as store


def test_columns_come_back_as_they_were_written(tmp_path):
    pieces = [{"a": [1, 2], "b": [0.5]}, {"a": [], "b": []}, {"a": [70000], "b": [1.5]}]
    store.write(tmp_path, {"a": "<u4", "b": "<f4"}, pieces)
    read, gathered = store.columns(tmp_path), store.gathered({"a": "<u4", "b": "<f4"}, pieces)
    for name in "ab":
        np.testing.assert_array_equal(read[name], gathered[name])
    assert read["a"].tolist() == [1, 2, 70000]


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def half(directory: Path) -> None:
        (directory / "part").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.entry(tmp_path, "kind", "key", half)
    assert list((tmp_path / "kind").iterdir()) == []
    made = store.entry(tmp_path, "kind", "key", lambda directory: store.write(directory, {"a": "<u4"}, [{"a": [1]}]))
    assert store.columns(made)["a"].tolist() == [1]


def test_two_processes_may_make_the_same_entry(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from llmos_cli.data import cache as store\n"
        "def build(directory): time.sleep(0.3); store.write(directory, {'a': '<u4'}, [{'a': range(1000)}])\n"
        f"print(int(store.columns(store.entry(Path({str(tmp_path)!r}), 'kind', 'key', build))['a'].sum()))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["499500\n"] * 2
    assert len(list((tmp_path / "kind").iterdir())) == 1
