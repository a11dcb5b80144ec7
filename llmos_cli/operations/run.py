"""run: carry out the stages of llmos.yaml's pipeline that are stale, each after what it depends on, several at once.

Of each stage the facts are gathered that decide what it makes (`pipeline/facts.py`). Where their hash is remembered, and what was
made then is there or can be brought back, nothing is done. Otherwise the stage runs, as a process of its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, urls
from llmos_cli.core.locks import lock
from llmos_cli.core.operation import Change
from llmos_cli.core.processes import Process
from llmos_cli.core.records import RunRecord
from llmos_cli.core.redaction import redacted
from llmos_cli.core.refs import STAGES
from llmos_cli.errors import Conflict, LlmosError, NotFound, Untrusted
from llmos_cli.events import Emit, Note
from llmos_cli.operations.pipeline import code, commands, process
from llmos_cli.operations.pipeline.facts import facts, key_of
from llmos_cli.operations.pipeline.files import tree
from llmos_cli.operations.pipeline.looking import Look, RunOptions, Work, look_at, unfinished
from llmos_cli.operations.pipeline.memory import LOCK, Last, Result
from llmos_cli.operations.pipeline.stages import Stage, chosen, read
from llmos_cli.operations.pipeline.telling import RunResult, Told, told_of

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

MAKING = ("train", "prune", "quantize", "compress")


def run(
    ws: Workspace, names: Sequence[str], options: RunOptions, *, ask: Callable[[str], bool] | None = None, emit: Emit
) -> RunResult:
    """The named stages and what they depend on. What failed is told in the result, not raised."""
    with lock(ws.dot / "locks" / LOCK, emit=emit):
        stages = chosen(read(ws), names)
        code.require(ws, stages, ask, among=stages)
        work = Work.of(ws, stages, names, options, emit)
        with process.stopping(work.processes):
            told = _carry_out(work, options.jobs)
        work.hashes.save()
    return RunResult(tuple(told[stage.name] for stage in stages), dry_run=False, stopped=work.processes.stopped)


def plan(ws: Workspace, names: Sequence[str], options: RunOptions, *, emit: Emit) -> RunResult:
    """What `run` would do with each stage, and why."""
    stages = chosen(read(ws), names)
    work = Work.of(ws, stages, names, options, emit)
    ws.tell_moved(STAGES)
    told: dict[str, Told] = {}
    for stage in stages:
        told[stage.name] = _planned(work, stage, told)
    work.hashes.save()
    return RunResult(tuple(told.values()), dry_run=True)


def _carry_out(work: Work, jobs: int) -> dict[str, Told]:
    """As many at once as there are jobs; what depends on a stage that failed is left out, the rest goes on."""
    told: dict[str, Told] = {}
    waiting = list(work.stages)
    running: dict[Future[Told], Stage] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [stage for stage in waiting if all(need in told for need in stage.needs)]
            for stage in ready[: jobs - len(running)]:
                waiting.remove(stage)
                running[pool.submit(_unless_blocked, work, stage, told)] = stage
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                told[running.pop(future).name] = future.result()
    return told


def _unless_blocked(work: Work, stage: Stage, others: Mapping[str, Told]) -> Told:
    """Everything about one stage; what is wrong with it is its own result."""
    if blocked := [need for need in stage.needs if not others[need].good]:
        return Told(stage.name, stage.verb, "skipped", why=f"{', '.join(blocked)} did not succeed")
    if work.processes.stopped:
        return Told(stage.name, stage.verb, "skipped", why="the run was stopped")
    try:
        told = _brought_up_to_date(work, stage)
    except (LlmosError, OSError) as raised:
        error = atomic.refusal(raised, raised.filename or work.ws.root) if isinstance(raised, OSError) else raised
        if error is None:
            raise
        told = Told(stage.name, stage.verb, "failed", code=error.exit_code, message=error.message, hint=error.hint)
    if told.checkpoint:
        work.made[stage.name] = told.checkpoint
    _say(work, told)
    return told


def _say(work: Work, told: Told) -> None:
    """What is up to date goes without saying."""
    if told.status != "fresh":
        words = f"{told.stage}: {told.word}" + (f" ({told.why})" if told.why else "")
        work.emit(Note(words if told.good else f"{words}: {told.message}", level="info" if told.good else "warning"))


def _brought_up_to_date(work: Work, stage: Stage) -> Told:
    look = look_at(work, stage)
    if look.result is not None:
        _remember(work, stage, look.result)
        _share(work, stage, look.result)
        return told_of(stage, look.result, "fresh", look.why)
    if look.elsewhere is not None:
        _clear(work, stage)
        if (result := look.elsewhere()) is not None:
            _remember(work, stage, result)
            _share(work, stage, result)
            return told_of(stage, result, "restored", look.why)
        look = replace(look, why="made again: what was kept of it could not be used")
    code.require_now(work.ws, stage)
    _clear(work, stage)
    return _made(work, stage, look)


def _share(work: Work, stage: Stage, result: Result) -> None:
    """What was made before there was a cache, or before that was lost, is what the next workspace looks for too."""
    if work.cache is not None and stage.verb != "deploy" and not work.cache.has(result.key):
        work.cache.save(result, work.emit)


def _clear(work: Work, stage: Stage) -> None:
    """Room for what a stage writes."""
    for path in _in_its_place(work, stage):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _in_its_place(work: Work, stage: Stage) -> Iterator[Path]:
    """Where a stage is about to write: what it wrote itself may go, what somebody else did stays, and stops it (Conflict)."""
    last = work.memory.last(stage.name)
    for name in stage.options.outputs:
        path = work.ws.root / name
        if not path.exists():
            continue
        now = tree(work.ws.root, [name], work.hashes)
        own = last is not None and (last.status != "done" or all(last.outputs.get(file) == now[file] for file in now))
        if not own:
            raise Conflict(f"{name} is not what {stage.name} wrote", hint="move it away: the stage writes it anew")
        yield path


def _made(work: Work, stage: Stage, look: Look) -> Told:
    started, again = time.time(), _resumable(work, stage, look.key)
    if stage.verb == "deploy":
        _make_way(work.ws, stage)
    ended, own = _executed(work, stage, look, again)
    seconds = time.time() - started
    runs = tuple(record.id for record in work.ws.runs.list() if _began(record, own))
    if not ended.code and (lacking := _unmade(work, stage)):
        ended = replace(ended, code=1, tail=f"it ended well, and did not make {', '.join(lacking)}")
    if ended.code:
        return _failed(work, stage, look, ended, seconds)
    checkpoint = str(ended.said.get("checkpoint", "")) if stage.verb in MAKING else ""
    outputs = tree(work.ws.root, stage.options.outputs, work.hashes)
    if stage.verb == "sh":
        code.trust_made(work.ws, outputs, work.stages)
    result = Result(look.key, stage.name, look.facts, checkpoint, outputs, ended.said, runs, seconds, time.time())
    if key_of(facts(stage, work.given)) != look.key:
        work.memory.note(stage.name, Last("", look.facts, "done", outputs))
        reason = f"{look.why}; not remembered: what it reads changed while it ran"
        return told_of(stage, result, "made", reason)
    _keep(work, stage, result)
    return told_of(stage, result, "made", look.why)


def _unmade(work: Work, stage: Stage) -> list[str]:
    return [name for name in stage.options.outputs if not (work.ws.root / urls.path(name)).exists()]


def _executed(work: Work, stage: Stage, look: Look, again: str) -> tuple[process.Ended, Process]:
    """Run the stage's command to its end, with the process noted from its beginning on; `again`: the run that it goes on with."""
    work.memory.note(stage.name, Last(look.key, look.facts, "running"))
    work.emit(Note(f"{stage.name}: {'goes on with ' + again if again else 'runs'} ({look.why})"))
    processes: list[Process] = []

    def began(found: Process) -> None:
        processes.append(found)
        where = (found.pid, found.started, found.host)
        work.memory.note(stage.name, Last(look.key, look.facts, "running", process=where))

    ended = work.processes.run(
        commands.command(work.ws, stage, look.facts, resume=again),
        cwd=work.ws.root,
        env=commands.environment(work.ws, stage, look.facts, work.threads),
        log=work.memory.log(stage.name),
        hear=lambda line: work.emit(Note(f"{stage.name}: {commands.by_name(line, look.facts['revisions'])}")),
        began=began,
    )
    return ended, processes[0]


def _keep(work: Work, stage: Stage, result: Result) -> None:
    """Here, and where other workspaces look."""
    if stage.verb == "sh":
        work.memory.keep_contents(work.ws.root, result.outputs)
    work.memory.keep(result)
    _remember(work, stage, result)
    if work.cache is not None and stage.verb != "deploy":
        work.cache.save(result, work.emit)


def _began(record: RunRecord, found: Process) -> bool:
    return (record.pid, record.pid_started, record.host) == (found.pid, found.started, found.host)


def _resumable(work: Work, stage: Stage, key: str) -> str:
    """The run of the same stage under the same key that was cut off, "" for none."""
    last = work.memory.last(stage.name)
    if (
        last is None
        or last.key != key
        or last.status == "done"
        or not last.process
        or stage.verb not in commands.RESUMABLE
    ):
        return ""
    for record in reversed(work.ws.runs.list()):
        state = record.path / "state"
        if _began(record, Process(*last.process)) and record.status != "done":
            return record.id if state.is_dir() and any(state.iterdir()) else ""
    return ""


def _make_way(ws: Workspace, stage: Stage) -> None:
    """A deployment of the same name gives way to the new one."""
    from llmos_cli.operations.stop import stop

    resolved = stage.resolved(ws)
    name = (resolved.config.deploy.name if resolved else None) or ws.name
    if any(record.operation == "deploy" and record.name == name for record in ws.runs.alive()):
        stop(ws, name)


def _failed(work: Work, stage: Stage, look: Look, ended: process.Ended, seconds: float) -> Told:
    stopped = bool(work.processes.stopped) and ended.code in (130, 143)
    last = work.memory.last(stage.name)
    assert last is not None, "it was noted when it began"
    work.memory.note(stage.name, replace(last, status="interrupted" if stopped else "failed"))
    error = ended.said.get("error") or {}
    exit_code = ended.code if stage.verb != "sh" or ended.code == 3 else 1
    message = str(error.get("message") or ended.failure)
    told = told_of(
        stage, Result(look.key, stage.name, look.facts, said=ended.said, seconds=seconds), "failed", look.why
    )
    if failed := [
        f"{verdict['requirement']} ({verdict['reason']})" for verdict in told.verdicts if not verdict["passed"]
    ]:
        message = f"the gate failed: {'; '.join(failed)}"
    log = str(work.memory.log(stage.name).relative_to(work.ws.root))
    hint = str(error.get("hint") or f"what it said last is in {log}")
    return replace(told, status="interrupted" if stopped else "failed", code=exit_code, message=message, hint=hint)


def _remember(work: Work, stage: Stage, result: Result) -> None:
    """As the last thing that the stage did; its checkpoint under its name."""
    work.memory.used(result.key)
    work.memory.note(stage.name, Last(result.key, result.facts, "done", result.outputs))
    if not result.checkpoint:
        return
    refs, name = work.ws.refs, STAGES + stage.name
    # A stage that `foreach` multiplies now, or no longer: a ref cannot be a folder too.
    in_the_way = [STAGES + other for other in refs.under(STAGES) if _nested(other, stage.name)]
    changes = [Change(other, refs.read(other), None) for other in in_the_way]
    if (before := refs.read(name)) != result.checkpoint:
        work.ws.oplog.apply(f"run {stage.name}", [*changes, Change(name, before, result.checkpoint)], emit=work.emit)


def _nested(one: str, other: str) -> bool:
    return one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _planned(work: Work, stage: Stage, told: Mapping[str, Told]) -> Told:
    """Without doing anything, asking whether code is trusted among it: what depends on a stage whose result is not there yet can only be
    guessed at."""
    try:
        code.require(work.ws, [stage], None, among=work.stages)
        if waits := [need for need in stage.needs if need in told and told[need].status != "fresh"]:
            last, after = work.memory.last(stage.name), f"after {', '.join(waits)}"
            if last is not None and (reason := unfinished(last)):
                return Told(stage.name, stage.verb, "would run", why=f"{reason}; {after}")
            return Told(stage.name, stage.verb, "may run", why=after)
        look = look_at(work, stage)
        if look.result is None:
            list(_in_its_place(work, stage))
        if look.result is None and look.elsewhere is None:
            code.require_now(work.ws, stage)
    except (NotFound, Conflict, Untrusted) as error:
        message = redacted(error.message)
        return Told(stage.name, stage.verb, "would fail", code=error.exit_code, message=message, hint=error.hint)
    if look.result is not None:
        work.made[stage.name] = look.result.checkpoint
        return told_of(stage, look.result, "fresh", look.why)
    return Told(stage.name, stage.verb, "would be restored" if look.elsewhere else "would run", look.key, look.why)
