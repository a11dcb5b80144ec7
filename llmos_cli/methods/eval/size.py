"""Size: bytes of the weights on disk, and how many times smaller that is than the uncompressed ancestor in bf16."""

from __future__ import annotations

from llmos_cli.methods.eval import Subject

UNITS = {"size": "bytes", "compression": "x"}
TIMED = False
BF16_BYTES = 2


def measure(subject: Subject) -> dict[str, float]:
    size = sum(path.stat().st_size for path in subject.path.glob("*.safetensors"))
    return {"size": float(size), "compression": BF16_BYTES * subject.base_parameters / size}
