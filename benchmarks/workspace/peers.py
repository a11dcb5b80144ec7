"""The same work in DVC and git-annex: large files added, thousands of outputs and experiments asked about.

Experiments are made by `git fast-import` in the form that `dvc exp save` gives them (a commit under `refs/exps/`, its parent the
baseline): saving thousands of them takes hours.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compress.venvs import FOLDER
from benchmarks.workspace.growth import made
from benchmarks.workspace.timing import Row, Seconds, Turn, best, command, do, timed

DVC = FOLDER / "dvc" / "bin" / "dvc"


def dvc(scratch: Path, options: argparse.Namespace) -> Iterator[Row]:
    """DVC with fewer outputs and experiments than our workspace has checkpoints and runs; git and git-annex with as many files."""
    large = made(scratch, options)
    tracked, tried = _tracked(scratch / "tracked", options.outputs), _tried(scratch / "tried", options.experiments)
    took = best(
        {
            "status": command(large, "status"),
            "log": command(large, "log", "--all", "-n", "20"),
            "log --all": command(large, "log", "--all"),
            "git log": Turn(["git", "log", "-n", "20"], tracked),
        },
        options.turns,
    )
    theirs = best(
        {
            "dvc status": Turn([DVC, "status", "-q"], tracked),
            "dvc exp show": Turn([DVC, "exp", "show", "--json"], tried),
        },
        max(options.turns // 2, 1),
    )
    yield Row("status", took["status"], f"dvc status, {options.outputs:,} outputs", theirs["dvc status"], 0.5)
    shown = f"dvc exp show, {options.experiments:,} exps"
    yield Row("log --all -n 20", took["log"], shown, theirs["dvc exp show"], 0.25)
    yield Row("log --all (every checkpoint)", took["log --all"], shown, theirs["dvc exp show"])
    yield Row("log --all -n 20", took["log"], "git log -n 20", took["git log"])
    if shutil.which("git-annex"):
        annexed = _annexed(scratch / "annexed", options.outputs)
        status = best({"": Turn(["git", "annex", "status"], annexed)}, options.turns)[""]
        yield Row("status", took["status"], f"git annex status, {options.outputs:,} files", status)


def added(scratch: Path, files: list[Path]) -> dict[str, tuple[Seconds, Seconds, Seconds | None]]:
    """Each peer -> seconds of storing these files, of storing them again with one changed, and of checking them, if it can."""
    place = _repository(scratch / "dvc-large", dvc=True)
    found = {"dvc": _added(place, files, [DVC])}
    if shutil.which("git-annex"):
        place = _repository(scratch / "annex-large", annex=True)
        check = Turn(["git", "annex", "fsck", "--quiet", "-J2", "model"], place)
        found["git annex"] = _added(place, files, ["git", "annex"], check)
    else:
        print("-- git-annex is not installed: left out")
    return found


def _added(
    place: Path, files: list[Path], peer: list[str | Path], check: Turn | None = None
) -> tuple[Seconds, Seconds, Seconds | None]:
    (place / "model").mkdir()
    for file in files:
        shutil.copyfile(file, place / "model" / file.name)
    add = Turn([*peer, "add", "--quiet", "model"], place)
    first = timed(add)
    changed = place / "model" / files[-1].name
    changed.unlink()
    changed.write_bytes(b"changed " + files[-1].read_bytes()[8:])
    second = timed(add)
    return first, second, timed(check) if check else None


def _tracked(place: Path, outputs: int) -> Path:
    _repository(place, dvc=True)
    names = [f"model-{number}" for number in range(outputs)]
    for name in names:
        (place / name).write_text(f"the weights of {name}\n" * 20)
    do(place, DVC, "add", "-q", *names)
    return _committed(place)


def _tried(place: Path, experiments: int) -> Path:
    _repository(place, dvc=True)
    (place / "model").write_text("weights\n")
    do(place, DVC, "add", "-q", "model")
    (place / "params.yaml").write_text("step: 0\n")
    (place / "metrics.json").write_text('{"loss": 1}\n')
    (place / "dvc.yaml").write_text("metrics: [metrics.json]\nparams: [params.yaml]\n")
    _committed(place)
    head = do(place, "git", "rev-parse", "HEAD").strip()
    imported = "".join(_experiment(head, number) for number in range(1, experiments + 1))
    do(place, "git", "fast-import", "--quiet", given=imported.encode())
    return place


def _experiment(head: str, number: int) -> str:
    said, params, metrics = (
        f"data {len(text)}\n{text}\n"
        for text in (f"dvc: commit experiment {number:064x}", f"step: {number}\n", f'{{"loss": {1 / number}}}\n')
    )
    return (
        f"commit refs/exps/{head[:2]}/{head[2:]}/exp-{number}\ncommitter a <a@example.org> {1_700_000_000 + number} +0000\n"
        f"{said}from {head}\nM 100644 inline params.yaml\n{params}M 100644 inline metrics.json\n{metrics}\n"
    )


def _annexed(place: Path, count: int) -> Path:
    _repository(place, annex=True)
    for number in range(count):
        (place / f"model-{number}").write_text(f"the weights of {number}\n" * 20)
    do(place, "git", "annex", "add", "--quiet", ".")
    return _committed(place)


def _repository(place: Path, *, dvc: bool = False, annex: bool = False) -> Path:
    place.mkdir()
    for words in (["init", "-q"], ["config", "user.name", "a"], ["config", "user.email", "a@example.org"]):
        do(place, "git", *words)
    if dvc:
        if not DVC.exists():
            hint = f"python -m venv {FOLDER / 'dvc'} && {DVC.with_name('pip')} install dvc==3.67.*"
            raise SystemExit(f"DVC is missing: {hint}")
        do(place, DVC, "init", "-q")
    if annex:
        do(place, "git", "annex", "init", "-q")
    return place


def _committed(place: Path) -> Path:
    do(place, "git", "add", ".")
    do(place, "git", "commit", "-qm", "first")
    return place
