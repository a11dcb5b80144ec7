"""Whether torch can compile on this machine, and what to say where it cannot: training and serving both ask."""

from __future__ import annotations

import os
import shutil

from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from llmos_cli import device
from llmos_cli.errors import LlmosError

FAILURES = (TorchDynamoException, InductorError)
"""What a compiler raises when it cannot: a missing C++ compiler or its headers, mostly."""


def possible() -> bool:
    """On the CPU torch compiles by way of a C++ compiler."""
    names = (os.environ.get("CXX", "g++"), "clang++", "c++")
    return device.pick().type != "cpu" or any(shutil.which(name) for name in names)


def explained(problem: Exception | str, *, instead: str) -> LlmosError:
    """A failure in one sentence; `instead`: what to set to do without."""
    first = str(problem).strip().splitlines()[0]
    return LlmosError(
        f"torch.compile failed: {first}", hint=f"Install a C++ compiler and Python's headers, or set {instead}."
    )
