"""A pickled state dict made safetensors: run as a program of its own, so that a hostile file meets a process that holds nothing.

    python -I unpickle.py WEIGHTS.bin OUTPUT.safetensors        (by `bounded`, which bounds its memory and time)

Only torch's weights-only unpickler is used: a file that names anything but tensors and plain containers is refused. Exit
status 0; 3 when the file is refused, 4 when it holds no tensors or cannot be read, with one line of reason on stdout.
"""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

REFUSED, UNREADABLE = 3, 4
MOST = 4
"""Times the bytes of the file that its tensors may be: tied ones stand in it once, and one byte can be said to be a terabyte."""
NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training programs keep the state dict beside their optimizer's."""


def main(source: Path, target: Path) -> int:
    try:
        _must_be_stored(source)
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        return _said(REFUSED, problem)
    except (RuntimeError, OSError, EOFError, MemoryError, ValueError, KeyError, zipfile.BadZipFile) as problem:
        return _said(UNREADABLE, problem)
    try:
        views = _named(loaded)
        if not views:
            return _said(UNREADABLE, ValueError("it holds no tensors by name"))
        if sum(view.numel() * view.element_size() for view in views.values()) > MOST * source.stat().st_size:
            return _said(UNREADABLE, ValueError("its tensors are many times as large as the file"))
        # Each with memory of its own: tied ones are stored apart here, the conversion ties them again.
        save_file({name: view.detach().clone().contiguous() for name, view in views.items()}, target, {"format": "pt"})
    except (RuntimeError, NotImplementedError, RecursionError, MemoryError, ValueError, TypeError, KeyError) as problem:
        return _said(UNREADABLE, problem)  # tensors without bytes, or of a kind that safetensors has not
    return 0


def _must_be_stored(source: Path) -> None:
    """ValueError where an archive's records are larger than the archive: torch stores them as they are, so that compressed ones are
    there to take memory."""
    with source.open("rb") as stream:
        if stream.read(2) != b"PK":
            return  # a plain pickle, as torch once wrote
    with zipfile.ZipFile(source) as archive:
        records = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in records):
        raise ValueError("its records are compressed, which torch never does")
    if sum(each.file_size for each in records) > source.stat().st_size:
        raise ValueError("its records are larger than the file")


def _named(loaded: Any) -> dict[str, torch.Tensor]:
    """The tensors of the state dict, by name."""
    if not isinstance(loaded, Mapping):
        return {}
    for key in NESTED:
        if isinstance(loaded.get(key), Mapping):
            return _named(loaded[key])
    named = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if all(name.startswith("module.") for name in named):  # saved from DataParallel
        named = {name.removeprefix("module."): value for name, value in named.items()}
    return named


def _said(status: int, problem: BaseException) -> int:
    named = re.search(r"GLOBAL (\S+)", str(problem))
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    print(f"it calls {named[1]}" if named else lines[0][:200])  # noqa: T201 - a program's own output
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
