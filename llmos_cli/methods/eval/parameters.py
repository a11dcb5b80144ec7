"""Parameters: how many weights the model has, a tied one counted once."""

from __future__ import annotations

from llmos_cli.methods.eval import Subject

UNITS = {"parameters": ""}
TIMED = False


def measure(subject: Subject) -> dict[str, float]:
    return {"parameters": float(sum(parameter.numel() for parameter in subject.model.parameters()))}
