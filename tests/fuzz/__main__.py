"""Coverage-guided fuzzing of `targets.py` by atheris: `make fuzz`, or `python -m tests.fuzz SECONDS [TARGET...]` for each so long.

What it finds is written to `tests/fuzz/found/` and told; it becomes a line of `test_targets.py`, and the parser is mended. The
corpus that it grows stays in `tests/fuzz/corpus/`, so that the next hour begins where this one ended.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LARGEST = 1 << 17


def main(seconds: int, names: list[str]) -> int:
    """Each target in a process of its own: atheris ends the one it runs in. The exit code tells whether anything was found."""
    from tests.fuzz.targets import TARGETS

    failed = [name for name in names or TARGETS if subprocess.run(_command(name, seconds), check=False).returncode]
    print(f"found something in {', '.join(failed)}: see {HERE / 'found'}" if failed else "nothing found")
    return 1 if failed else 0


def _command(name: str, seconds: int) -> list[str]:
    for folder in (HERE / "corpus" / name, HERE / "found"):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LARGEST}",
        "-print_final_stats=1",
        "-verbosity=0",
        "-timeout=20",
    ]
    keep = f"-artifact_prefix={HERE / 'found'}/{name}-"
    return [sys.executable, "-m", "tests.fuzz", "--one", name, str(HERE / "corpus" / name), keep, *options]


def one(name: str, options: list[str]) -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("fuzzing needs the package atheris: pip install atheris")
    with atheris.instrument_imports(include=["llmos_cli"]):
        from tests.fuzz import targets
    from llmos_cli.errors import LlmosError

    for number, seed in enumerate(targets.seeds(name)):
        (HERE / "corpus" / name / f"seed-{number}").write_bytes(seed)
    target = targets.TARGETS[name]

    def run(data: bytes) -> None:
        try:
            target(data)
        except LlmosError:
            return

    def mutated(data: bytes, largest: int, seed: int) -> bytes:
        """Bytes that changed anyhow, and JSON that is still JSON."""
        chance = random.Random(seed)
        return bytes(atheris.Mutate(data, largest) if chance.random() < 0.5 else targets.nasty(data, chance)[:largest])

    atheris.Setup([sys.argv[0], *options], run, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
