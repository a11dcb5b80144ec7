"""Hidden states of a student against those of its teacher.

The student's layer i, of S, is matched with the teacher's layer round(i T / S), of T, the embeddings being layer 0, and brought to
the teacher's width by a learnt projection where widths differ (Jiao et al. 2020, TinyBERT, arXiv:1909.10351, equations 6 to 9).
Both sides are scaled to length 1 before their squared distance is taken (Sun et al. 2019, Patient Knowledge Distillation,
arXiv:1908.09355, equation 7): plain squares would be all about the few positions and layers whose states are huge.

Shapes: B samples, L positions in a sample, D the student's width, E the teacher's.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmos_cli.errors import UsageError
from llmos_cli.tasks.base import UNSCORED, Batch
from llmos_cli.tasks.scoring import outputs

WITHOUT = "Unset train.hidden_weight: the logits alone teach any model."


class Matching(nn.Module):
    """Which layers are compared, and the projections (student's layer number -> matrix [E, D]) for those of unequal width."""

    def __init__(self, pairs: Sequence[tuple[int, int]], widths: Sequence[tuple[int, int]], *, seed: int) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        generator = torch.Generator().manual_seed(seed)
        self.projections = nn.ParameterDict(
            {
                str(ours): nn.init.orthogonal_(torch.empty(theirs_E, ours_D), generator=generator)
                for (ours, _), (ours_D, theirs_E) in zip(pairs, widths, strict=True)
                if ours_D != theirs_E
            }
        )

    @property
    def taught(self) -> tuple[int, ...]:
        """The teacher's layers that are looked at, one for each pair."""
        return tuple(theirs for _, theirs in self.pairs)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch) -> Tensor:
        """The mean distance over the layers and over each sample's positions, times its scored positions, summed over the samples:
        divided by a step's scored positions it is a mean, whatever the samples' lengths. `teacher`: the `taught` layers."""
        total = torch.zeros((), device=student[0].device)
        weight_BL = _weights(batch, student[0])
        for (ours, _), theirs_BLE in zip(self.pairs, teacher, strict=True):
            ours_BLE = student[ours]
            if str(ours) in self.projections:
                ours_BLE = F.linear(ours_BLE, self.projections[str(ours)])
            gap_BLE = F.normalize(ours_BLE.float(), dim=-1) - F.normalize(theirs_BLE.float(), dim=-1)
            total = total + (gap_BLE.square().sum(-1) * weight_BL).sum()
        return total / len(self.pairs)


def _weights(batch: Batch, hidden_BLD: Tensor) -> Tensor:
    """What each position counts, [B, L]: padding nothing, the others of a sample together as much as it has scored positions."""
    labels = batch["labels"]
    scored_B = (labels != UNSCORED).view(len(labels), -1).sum(1)
    if "attention_mask" in batch:
        real_BL = batch["attention_mask"].float()
    elif labels.shape == hidden_BLD.shape[:2]:
        real_BL = (labels != UNSCORED).float()
    else:
        real_BL = torch.ones(hidden_BLD.shape[:2], device=hidden_BLD.device)
    return real_BL * (scored_B / real_BL.sum(1).clamp_min(1))[:, None]


def evenly(student: int, teacher: int) -> list[tuple[int, int]]:
    """(layer of the student, layer of the teacher), embeddings first, for models of so many layers."""
    return [(layer, (2 * layer * teacher + student) // (2 * student)) for layer in range(student + 1)]


def matching(student: nn.Module, teacher: nn.Module, batch: Batch, *, seed: int) -> Matching:
    """Match two models by what they give for `batch`; UsageError where one of them tells no hidden states that can be compared."""
    ours, theirs = _states(student, batch, "model"), _states(teacher, batch, "teacher")
    if len(ours) < 2:
        raise UsageError("The model has no layer whose hidden states could be compared.", hint=WITHOUT)
    pairs = evenly(len(ours) - 1, len(theirs) - 1)
    for own, other in pairs:
        if ours[own].shape[:2] != theirs[other].shape[:2]:
            raise UsageError(
                f"The model has {ours[own].shape[1]} positions where its teacher has {theirs[other].shape[1]}, so their "
                "hidden states cannot be compared.",
                hint=WITHOUT,
            )
    widths = [(ours[own].shape[2], theirs[other].shape[2]) for own, other in pairs]
    return Matching(pairs, widths, seed=seed).to(ours[0].device)


@torch.no_grad()
def _states(model: nn.Module, batch: Batch, whose: str) -> Sequence[Tensor]:
    """The hidden states of one pass without dropout, which draws no random number and moves no running mean."""
    found = None
    if _can_be_asked(model):
        training = model.training
        model.eval()
        found = getattr(outputs(model, batch, output_hidden_states=True), "hidden_states", None)
        model.train(training)
    if not found or any(state.ndim != 3 for state in found):
        name = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
        raise UsageError(f"The {whose} ({name}) tells no hidden states of positions.", hint=WITHOUT)
    return tuple(found)


def _can_be_asked(model: nn.Module) -> bool:
    named = inspect.signature(model.forward).parameters.values()
    return any(each.kind is each.VAR_KEYWORD or each.name == "output_hidden_states" for each in named)
