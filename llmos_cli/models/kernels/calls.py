"""Functions of a C library called with tensors: by address, with the number of threads that torch computes with last."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from llmos_cli.models.kernels.building import Source, complaint


@functools.cache
def obstacle(source: Source) -> str:
    """Why its functions cannot be called here, empty when it is compiled and loaded."""
    if reason := source.unsuited():
        return reason
    try:
        _library(source)
    except subprocess.CalledProcessError as problem:
        return complaint(problem)
    except OSError as problem:
        return f"it does not load: {problem}"
    return ""


def readable(tensor: Tensor) -> bool:
    """Whether C finds it: in this machine's memory."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def call(source: Source, name: str, *arguments: Tensor | float | None) -> None:
    """Tensors as the address of their first element, which lives until the call returns; None as no address."""
    given = [_in_c(argument) for argument in (*arguments, torch.get_num_threads())]
    getattr(_library(source), name)(*given)


def _in_c(argument: Tensor | float | None) -> Any:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_int64(argument) if isinstance(argument, int) else ctypes.c_float(argument)


@functools.cache
def _library(source: Source) -> ctypes.CDLL:
    return ctypes.CDLL(str(source.compiled()))
