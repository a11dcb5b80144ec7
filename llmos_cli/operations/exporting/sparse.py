"""Sparse storage of our own: zeros left out, read back to the last bit by `llmos import`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from llmos_cli.core import atomic
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import Corrupt, LlmosError
from llmos_cli.models import headers, sparse_files
from llmos_cli.operations.exporting.common import ExportOptions, Outcome, copy, others

TYPES: tuple[str, ...] = ()
SUFFIXES = (".safetensors", sparse_files.FILE)
FILE = ""


def write(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> Outcome:
    """Written, then restored in full and hashed against the checkpoint's manifest."""
    written = sparse_files.write(checkpoint.path, target)
    if not written.encodings:
        raise LlmosError(
            "leaving out zeros makes nothing of it smaller", hint="`llmos prune` first, or export --format hf"
        )
    copy(checkpoint, target, {*others(checkpoint), "config.json"} - {headers.INDEX})
    with TemporaryDirectory(dir=target.parent) as folder:
        try:
            sparse_files.restore(target, Path(folder))
        except Corrupt as error:  # what the disk refuses to take is no damage of what was written
            raise atomic.system_error(error) or error from None
    kinds = ", ".join(f"{count} {kind}" for kind, count in written.encodings.items())
    return Outcome(notes=(f"matrices: {kinds}; they come back byte for byte: `llmos import` the folder",))
