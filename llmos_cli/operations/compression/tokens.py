"""Which linear layers are given their inputs token by token, and which are not: there, no reader rounds inputs token by token.

compressed-tensors keeps the first two dimensions of what a layer is given apart and takes one scale for all the others. Of [samples,
tokens, inputs] that is a scale for each token; of rows alone (BERT's pooler, OPT's MLP) it is one for the whole batch, and of
pictures [B, H, W, I] one for a row of pixels. There an answer would hang on what it is batched with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from llmos_cli import device
from llmos_cli.models.replay import replaying
from llmos_cli.operations.compression.subject import Subject

BY_TOKEN = 3
"""Dimensions of [samples, tokens, inputs]."""


def not_by_token(subject: Subject) -> frozenset[str]:
    """The linear layers among the subject's that one held-out sample reaches otherwise than as [1, tokens, inputs]."""
    one = device.move({name: value[:1] for name, value in subject.asked.items()}, subject.device)
    model = subject.model
    with _dimensions(subject) as seen, replaying(model, subject.shelf.stack if subject.shelf else []) as replay:
        if subject.shelf:
            replay.check(one, subject.shelf.held)
        else:
            model(**one)
    return frozenset(name for name, dimensions in seen.items() if dimensions != BY_TOKEN)


@contextmanager
def _dimensions(subject: Subject) -> Iterator[dict[str, int]]:
    """Within it, of each linear layer that runs how many dimensions its inputs have."""
    seen: dict[str, int] = {}

    def note(name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], torch.Tensor):
            seen[name] = given[0].dim()

    with ExitStack() as undo:
        for matrix in subject.matrices.values():
            if isinstance(matrix.layer, nn.Linear):
                hook = matrix.layer.register_forward_pre_hook(partial(note, matrix.layer_name))
                undo.callback(hook.remove)
        yield seen
