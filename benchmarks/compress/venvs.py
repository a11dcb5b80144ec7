"""Each peer in an environment of its own: made when it is first asked for, next to this code and out of git.

python -m benchmarks.compress.venvs gptqmodel auto-round    # what the tests marked `system` read exports with
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / ".peers"
TORCH = "torch==2.13.0"
"""Installed with each peer: without it, a peer brings the newest torch, and on Linux gigabytes of CUDA with it."""
REQUIREMENTS = {
    "llm-compressor": ("llmcompressor==0.14.*",),
    "auto-round": ("auto-round==0.16.*",),
    "torch-pruning": ("torch-pruning==1.6.*", "transformers==5.17.*"),
    "gptqmodel": ("gptqmodel==7.6.0",),
}


def python(peer: str) -> Path:
    """The interpreter of a peer's environment, after making sure that it is whole."""
    home = FOLDER / peer
    found, wanted = home / "bin" / "python", [TORCH, *REQUIREMENTS[peer]]
    note = home / "installed.json"
    if not whole(peer):
        print(f"making {home.relative_to(ROOT)} with {' '.join(wanted)}", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True)
        subprocess.run([found, "-m", "pip", "install", "-q", *wanted], check=True, stdout=sys.stderr)
        note.write_text(json.dumps(wanted))
    return found


def whole(peer: str) -> bool:
    note = FOLDER / peer / "installed.json"
    return note.exists() and json.loads(note.read_text()) == [TORCH, *REQUIREMENTS[peer]]


def versions(peer: str) -> dict[str, str]:
    """Every distribution in a peer's environment."""
    listed = subprocess.run(
        [python(peer), "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    return {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(python(name))
