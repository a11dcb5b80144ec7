"""C++ sources of ours: compiled where they are first needed, kept in the user's cache folder, used where they can be.

LLMOS_COMPILE=off in the environment keeps them from being compiled; what they do is then left to torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmos_cli import device
from llmos_cli.core.places import cache_home

OFF = "LLMOS_COMPILE is off"


@dataclass(frozen=True)
class Source:
    """`needed`: instruction sets without which it cannot be used, `wished`: those that it uses where they are."""

    path: Path
    needed: tuple[str, ...] = ()
    wished: tuple[str, ...] = ()
    uses_torch: bool = False

    def unsuited(self) -> str:
        """Why it cannot be had here, empty when it can."""
        if missing := [flag for flag in self.needed if flag not in device.instructions()]:
            return f"the processor lacks {missing[0]}"
        if self.library().is_file():
            return ""
        if os.environ.get("LLMOS_COMPILE") == "off":
            return OFF
        return "" if compiler() else "there is no C++ compiler"

    def library(self) -> Path:
        return cache_home() / "kernels" / f"{self.path.stem}-{self.version()}.so"

    def version(self) -> str:
        """All that the library depends on: the source, torch, the flags."""
        facts = [self.path.read_text(), _torch_version() if self.uses_torch else "", *self._flags()]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def compiled(self) -> Path:
        """Seconds, with torch's headers some ten. Several processes may compile at once; the last rename wins, and all are alike.

        Raises subprocess.CalledProcessError where the compiler refuses.
        """
        path = self.library()
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            command = [str(compiler()), *self._flags(), str(self.path), "-o", str(made), *self._linked()]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(path)
        return path

    def _flags(self) -> list[str]:
        machine = [f"-m{flag}" for flag in (*self.needed, *self.wished) if flag in device.instructions()]
        return ["-std=c++20", "-O3", "-shared", "-fPIC", "-fopenmp", "-fno-strict-aliasing", "-Wno-psabi", *machine]

    def _linked(self) -> list[str]:
        if not self.uses_torch:
            return []
        from torch.utils.cpp_extension import include_paths, library_paths

        places = [*(f"-isystem{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths())]
        return [*places, "-lc10", "-ltorch_cpu"]


def compiler() -> str | None:
    names = (os.environ.get("CXX", "g++"), "clang++", "c++")
    return next((found for name in names if (found := shutil.which(name))), None)


def complaint(problem: subprocess.CalledProcessError) -> str:
    first = next((line for line in problem.stderr.splitlines() if "error" in line), "it says nothing")
    return f"the C++ compiler refuses them: {first.strip()}"


def _torch_version() -> str:
    import torch

    return torch.__version__
