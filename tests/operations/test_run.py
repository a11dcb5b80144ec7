"""llmos run: what runs and what does not, why, in which order, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos_cli.core.remote import layout
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.pipeline import process
from llmos_cli.operations.pipeline.stages import chosen, read

SHELL = """\
format: 1
pipeline:
  clean:
    sh: tr a-z A-Z < raw.txt > clean.txt; echo clean >> ran
    inputs: [raw.txt]
    outputs: [clean.txt]
  count:
    sh: wc -l < clean.txt > count.txt; echo count >> ran
    inputs: [clean.txt]
    outputs: [count.txt]
  greet:
    sh: echo "hello $who" > "hello-$who.txt"; echo "greet $who" >> ran
    foreach: {who: [ann, "b c"]}
    outputs: ["hello-${who}.txt"]
"""


@pytest.fixture
def shell(empty: Workspace, llmos) -> Workspace:
    (empty.root / "raw.txt").write_text("one\ntwo\n")
    (empty.root / "llmos.yaml").write_text(SHELL)
    assert llmos("trust", "--pipeline").code == 0
    return empty


def ran(ws: Workspace) -> list[str]:
    """What the stages' commands noted since the last time."""
    path = ws.root / "ran"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def statuses(told) -> dict[str, str]:
    return {stage["stage"]: stage["status"] for stage in told.json["stages"]}


def why(told) -> dict[str, str]:
    return {stage["stage"]: stage["why"] for stage in told.json["stages"]}


def test_each_stage_runs_once(shell: Workspace, llmos):
    assert statuses(llmos("run", "--dry-run", "--json")) == {
        "clean": "would run",
        "count": "may run",
        "greet/ann": "would run",
        "greet/b-c": "would run",
    }
    assert ran(shell) == []
    assert llmos("run", "-q").code == 0
    assert ran(shell) == ["clean", "count", "greet ann", "greet b c"]
    assert (shell.root / "count.txt").read_text().strip() == "2"
    assert (shell.root / "hello-b c.txt").read_text() == "hello b c\n"
    again = llmos("run", "--json")
    assert set(statuses(again).values()) == {"fresh"} and ran(shell) == []


def test_what_changed_runs_with_what_depends_on_it(shell: Workspace, llmos):
    llmos("run", "-q"), ran(shell)
    (shell.root / "raw.txt").write_text("three\nfour\n")
    planned = llmos("run", "--dry-run", "--json")
    assert why(planned)["clean"] == "raw.txt is another one" and why(planned)["count"] == "after clean"
    assert statuses(planned)["greet/ann"] == "fresh"
    llmos("run", "-q")
    assert ran(shell) == ["clean", "count"]


def test_a_change_that_makes_the_same_stops_there(shell: Workspace, llmos):
    llmos("run", "-q"), ran(shell)
    (shell.root / "raw.txt").write_text("ONE\ntwo\n")
    llmos("run", "-q")
    assert ran(shell) == ["clean"]


def test_comments_and_order_change_nothing(shell: Workspace, llmos):
    llmos("run", "-q"), ran(shell)
    stages = re.split(r"(?m)^  (?=\w)", SHELL.partition("pipeline:\n")[2])[1:]
    moved = "".join("  # a comment\n  " + stage for stage in reversed(stages))
    (shell.root / "llmos.yaml").write_text("format: 1\npipeline:\n" + moved)
    assert set(statuses(llmos("run", "--json")).values()) == {"fresh"} and ran(shell) == []


def test_going_back_brings_back_what_was_made(shell: Workspace, llmos):
    llmos("run", "-q"), ran(shell)
    for text in ("other\n", "one\ntwo\n"):
        (shell.root / "raw.txt").write_text(text)
        told = llmos("run", "clean", "--json")
    assert statuses(told) == {"clean": "restored"} and ran(shell) == ["clean"]
    assert (shell.root / "clean.txt").read_text() == "ONE\nTWO\n"


def test_a_new_cache_gets_what_was_made_before(shell: Workspace, llmos, tmp_path):
    llmos("run", "-q"), ran(shell)
    cached = ("run", "--cache-dir", tmp_path / "cache", "--json")
    assert set(statuses(llmos(*cached)).values()) == {"fresh"}
    shutil.rmtree(shell.dot / "pipeline")
    for path in (shell.root / "clean.txt", *shell.root.glob("hello-*")):
        path.unlink()
    told = statuses(llmos(*cached))
    assert {told[name] for name in told if name == "clean" or name.startswith("hello")} == {"restored"} and ran(
        shell
    ) == []


def test_a_cache_that_is_damaged_heals(shell: Workspace, new_workspace, llmos, tmp_path, monkeypatch):
    cached = ("run", "clean", "--json", "--cache-dir", tmp_path / "cache")
    llmos(*cached)
    sha256 = hashlib.sha256(b"ONE\nTWO\n").hexdigest()
    kept = tmp_path / "cache" / "objects" / sha256[:2] / sha256[2:]
    kept.chmod(0o644)
    kept.write_bytes(b"ONE\nTWA\n")
    for name, status in (("second", "made"), ("third", "restored")):
        other = new_workspace(tmp_path / name)
        monkeypatch.chdir(other.root)
        shutil.copy(shell.root / "raw.txt", other.root), shutil.copy(shell.root / "llmos.yaml", other.root)
        llmos("trust", "--pipeline")
        told = llmos(*cached)
        assert (statuses(told), (other.root / "clean.txt").read_text()) == ({"clean": status}, "ONE\nTWO\n")
        assert why(told)["clean"].startswith("made again: " if status == "made" else "from the cache")


def test_gc_forgets_what_is_no_stages_last(shell: Workspace, llmos):
    """After its time; what the stages made last stays, contents too."""
    llmos("run", "-q")
    (shell.root / "raw.txt").write_text("other\n")
    llmos("run", "-q")
    assert "result" not in {each["kind"] for each in llmos("gc", "--json").json["garbage"]}, "it is young"
    gone = [
        each["name"] for each in llmos("gc", "--expire", "now", "--json").json["garbage"] if each["kind"] == "result"
    ]
    assert [name.split("/")[1] for name in gone] == ["results", "results", "objects", "objects"]
    assert set(statuses(llmos("run", "--json")).values()) == {"fresh"}
    (shell.root / "clean.txt").unlink()
    assert statuses(llmos("run", "--json"))["clean"] == "restored"
    (shell.root / "raw.txt").write_text("one\ntwo\n"), ran(shell)
    assert llmos("run", "clean", "--json").code == 0 and ran(shell) == ["clean"], "it is made again"


def test_gc_forgets_stages_that_are_no_more(shell: Workspace, llmos):
    """What they made too; not while llmos.yaml cannot be read, and not before its time."""
    llmos("run", "-q")
    text = (shell.root / "llmos.yaml").read_text()
    kept = shell.dot / "pipeline" / "stages" / "count.json"
    (shell.root / "llmos.yaml").write_text(f"{text}  broken: [\n")
    llmos("gc", "--expire", "now", "-q")
    (shell.root / "llmos.yaml").write_text(text.split("  count:")[0])
    llmos("gc", "-q")
    assert kept.exists()
    gone = [each["name"] for each in llmos("gc", "--expire", "now", "--json").json["garbage"]]
    assert "pipeline/stages/count.json" in gone and not kept.exists()
    assert sum(name.startswith("pipeline/objects/") for name in gone) == 3, "of count, and of two that greet"
    assert statuses(llmos("run", "--json")) == {"clean": "fresh"}
    assert llmos("fsck").code == 0


def test_an_output_that_is_gone_is_put_back_and_an_edited_one_is_not_overwritten(shell: Workspace, llmos):
    llmos("run", "-q"), ran(shell)
    (shell.root / "clean.txt").unlink()
    assert statuses(llmos("run", "--json", "-q"))["clean"] == "restored" and ran(shell) == []
    (shell.root / "clean.txt").write_text("mine")
    told = llmos("run", "clean", "-q")
    assert told.code == 6 and "clean.txt is not what clean wrote" in told.err
    assert (shell.root / "clean.txt").read_text() == "mine"


def test_what_somebody_else_wrote_is_not_overwritten(shell: Workspace, llmos):
    (shell.root / "count.txt").write_text("precious")
    told = llmos("run", "-q", "--json")
    assert told.code == 6 and statuses(told)["count"] == "failed"
    assert (shell.root / "count.txt").read_text() == "precious" and "count" not in ran(shell)


def test_only_the_named_and_what_they_need(shell: Workspace, llmos):
    assert llmos("run", "count", "-q").code == 0
    assert ran(shell) == ["clean", "count"]
    assert llmos("run", "greet", "-q").code == 0
    assert ran(shell) == ["greet ann", "greet b c"]
    assert llmos("run", "--fresh", "count", "-q").code == 0
    assert ran(shell) == ["count"]


def test_a_shell_stage_runs_only_when_trusted(shell: Workspace, llmos):
    text = SHELL.replace("echo count", "echo number")
    (shell.root / "llmos.yaml").write_text(text)
    told = llmos("run", "-q")
    assert told.code == 5 and "count is a command that is not trusted here" in told.err and ran(shell) == []
    planned = llmos("run", "--dry-run")
    assert planned.code == 5 and "would fail  count: llmos.yaml: count is a command that is not trusted" in planned.out
    assert "`llmos trust --pipeline`" in planned.err
    assert "llmos.yaml: count" in llmos("trust", "--list").out
    llmos("trust", "--pipeline")
    assert llmos("run", "-q").code == 0
    llmos("trust", "--revoke", "llmos.yaml: count")
    assert llmos("run", "-q").code == 5


def test_so_is_a_script_that_it_names(empty: Workspace, llmos):
    (empty.root / "go.sh").write_text("echo 1 > one\n")
    (empty.root / "llmos.yaml").write_text("pipeline: {go: {sh: sh go.sh, outputs: [one]}}\n")
    llmos("trust", "--pipeline")
    assert llmos("run", "-q").code == 0
    (empty.root / "go.sh").write_text("echo 2 > one\n")
    told = llmos("run", "-q")
    assert told.code == 5 and "go.sh is code that is not trusted here" in told.err
    llmos("trust", "go.sh")
    assert why(llmos("run", "--json"))["go"] == "go.sh is another one"
    assert (empty.root / "one").read_text() == "2\n"


@pytest.mark.parametrize("command", ["sh go; :", "sh -e < go", "(. ./go)", "cat x|bash go", "ls . # x\\n. ./go"])
def test_so_is_what_an_interpreter_is_given(empty: Workspace, llmos, command):
    """Whatever it is called, and whatever stands beside it."""
    (empty.root / "go").write_text("echo 1 > one\n")
    (empty.root / "llmos.yaml").write_text(f'pipeline: {{go: {{sh: "{command}"}}}}\n')
    llmos("trust", "--pipeline")
    (empty.root / "go").write_text("echo 2 > one\n")
    told = llmos("run", "-q")
    assert told.code == 5 and "go is code that is not trusted here" in told.err


WRITTEN = """\
pipeline:
  a: {sh: "for f in gen; do echo 'echo good' > $f.sh; done; echo a >> ran", outputs: [gen.sh]}
  b: {sh: "sh gen.sh > o.txt; echo b >> ran", inputs: [gen.sh], outputs: [o.txt]}
"""


def test_a_program_of_one_long_word_is_no_file(empty: Workspace, llmos):
    (empty.root / "llmos.yaml").write_text(f"pipeline: {{go: {{sh: 'echo {'x' * 300}'}}}}\n")
    assert llmos("trust", "--pipeline").code == 0 and llmos("run", "-q").code == 0


def test_data_beside_a_dot_is_no_code(empty: Workspace, llmos):
    (empty.root / "data").write_text("1")
    (empty.root / "llmos.yaml").write_text("pipeline: {go: {sh: 'grep -r 1 . data'}}\n")
    llmos("trust", "--pipeline")
    (empty.root / "data").write_text("1 and more")
    assert llmos("run", "-q").code == 0


def written(ws: Workspace, llmos, text: str = WRITTEN) -> None:
    (ws.root / "llmos.yaml").write_text(text)
    assert llmos("trust", "--pipeline").code == 0


def test_a_script_that_a_stage_wrote_here_runs_here(empty: Workspace, llmos):
    """It is listed as what a trusted command made; an edit of somebody else's is not."""
    written(empty, llmos)
    for _ in range(2):
        assert llmos("run", "-q").code == 0 and (empty.root / "o.txt").read_text() == "good\n"
    assert "gen.sh" in llmos("trust", "--list").out
    llmos("trust", "--revoke", "gen.sh"), (empty.root / "o.txt").unlink(), shutil.rmtree(empty.dot / "pipeline/objects")
    planned = llmos("run", "--dry-run", "--json")
    assert why(planned)["a"] == "gen.sh may be code and was not made here"
    assert statuses(llmos("run", "-q", "--json")) == {"a": "made", "b": "made"}
    assert set(statuses(llmos("run", "-q", "--json")).values()) == {"fresh"}


def test_what_a_workspace_remembers_is_no_trust(empty: Workspace, llmos):
    """It may be somebody else's: a script that is not listed here is made, not put back."""
    written(empty, llmos)
    llmos("run", "-q"), llmos("trust", "--revoke", "gen.sh"), (empty.root / "gen.sh").unlink(), ran(empty)
    assert llmos("run", "-q").code == 0 and ran(empty) == ["a"]
    (empty.root / "gen.sh").unlink()
    assert llmos("run", "-q").code == 0 and ran(empty) == []


def test_a_script_of_its_own_is_neither_its_input_nor_checked(empty: Workspace, llmos):
    written(empty, llmos, "pipeline: {a: {sh: 'echo hi > x.sh; chmod +x x.sh; ./x.sh || :', outputs: [x.sh]}}\n")
    assert why(llmos("run", "--json"))["a"] == "it never ran here"
    (empty.root / "x.sh").unlink()
    assert statuses(llmos("run", "--json"))["a"] == "restored"
    assert statuses(llmos("run", "--json"))["a"] == "fresh"


@pytest.mark.parametrize("name", ["gen.sh", "gen"])
def test_a_script_from_a_cache_runs_only_when_trusted(
    empty: Workspace, new_workspace, llmos, tmp_path, monkeypatch, name
):
    """Who can write to the cache exchanges it: it is made here instead, and the rest comes from the cache."""
    text = WRITTEN.replace("gen.sh", name).replace("$f.sh", name)
    written(empty, llmos, text)
    cached = ("run", "-q", "--json", "--cache-dir", tmp_path / "cache")
    assert llmos(*cached).code == 0
    exchange(tmp_path / "cache", name, b"echo evil\n")
    other = new_workspace(tmp_path / "other")
    monkeypatch.chdir(other.root)
    written(other, llmos, text)
    planned = llmos(*cached, "--dry-run")
    assert why(planned)["a"] == f"{name} in the cache may be code and was not made here"
    told = llmos(*cached)
    assert statuses(told) == {"a": "made", "b": "restored"} and ran(other) == ["a"]
    assert (other.root / "o.txt").read_text() == "good\n"


def test_what_a_first_line_makes_a_script_is_one_in_a_cache_too(
    empty: Workspace, new_workspace, llmos, tmp_path, monkeypatch
):
    written(
        empty,
        llmos,
        "pipeline: {a: {sh: 'echo text > out/gen.txt; echo a >> ran', outputs: [out]}}\n".replace(
            "echo text", "mkdir out; echo text"
        ),
    )
    cached = ("run", "--json", "--cache-dir", tmp_path / "cache")
    assert llmos(*cached).code == 0
    exchange(tmp_path / "cache", "out/gen.txt", b"#!/bin/sh\necho evil\n")
    other = new_workspace(tmp_path / "other")
    monkeypatch.chdir(other.root)
    shutil.copy(empty.root / "llmos.yaml", other.root)
    assert llmos("trust", "--pipeline").code == 0
    told = llmos(*cached)
    assert statuses(told) == {"a": "made"} and "cannot be had from the cache: out/gen.txt may be code" in told.err
    assert (other.root / "out/gen.txt").read_text() == "text\n"


FOUND = """\
pipeline:
  a: {sh: "mkdir tools; echo 1 > tools/NAME; echo a >> ran", outputs: [tools/]}
  b: {sh: "COMMAND; echo b >> ran", inputs: [tools/], outputs: [o.txt]}
"""
"""NAME: what one stage writes; COMMAND: what the other does with it."""


@pytest.mark.parametrize(
    "name, command, comes",
    [
        ("x", "bash -eo pipefail tools/x > o.txt || :", False),
        ("x.txt", "bash -eo pipefail tools/x.txt > o.txt || :", False),
        ("x.csv", "python3 -W ignore tools/x.csv > o.txt", False),
        ("x.txt", "(cd tools && sh -c 'sh x.txt' > ../o.txt || :)", False),
        ("x.txt", "for f in tools/*; do sh $f || :; done > o.txt", False),
        ("x.txt", "cat tools/x.txt | sh > o.txt || :", False),
        ("helper.pyc", "PYTHONPATH=tools true > o.txt", False),
        ("x.so", "true > o.txt", False),
        ("rows.csv", "python3 -c 'import sys; print(len(sys.argv))' tools/rows.csv > o.txt", True),
        ("rows.jsonl", "python3 -m json.tool tools/rows.jsonl > o.txt", True),
        ("model.safetensors", "perl -pe 's/1/2/' tools/model.safetensors > o.txt", True),
        ("notes.TXT", "cat tools/notes.TXT | python3 -c pass > o.txt", True),
    ],
)
def test_only_what_is_data_for_certain_comes_out_of_a_cache(
    empty: Workspace, new_workspace, llmos, tmp_path, monkeypatch, name, command, comes
):
    """Whatever a command may find or is given may be code; where it is not listed it is made here. Here it is listed: nothing
    runs twice."""
    text = FOUND.replace("NAME", name).replace("COMMAND", command)
    cached = ("run", "-q", "--json", "--cache-dir", tmp_path / "cache")
    written(empty, llmos, text)
    assert set(statuses(llmos(*cached)).values()) == {"made"}
    assert set(statuses(llmos(*cached)).values()) == {"fresh"}
    assert (f"tools/{name}" in llmos("trust", "--list").out) is not comes, "data is not listed, however much there is"
    other = new_workspace(tmp_path / "other")
    monkeypatch.chdir(other.root)
    written(other, llmos, text)
    assert statuses(llmos(*cached))["a"] == ("restored" if comes else "made")
    assert set(statuses(llmos(*cached)).values()) == {"fresh"}


def test_what_stands_in_a_prepared_workspace_is_no_trust_either(empty: Workspace, llmos):
    """Somebody exchanges what a stage wrote, and what is remembered of it."""
    text = FOUND.replace("NAME", "x.sh").replace("COMMAND", "for f in tools/*.sh; do sh $f || :; done > o.txt")
    written(empty, llmos, text)
    assert llmos("run", "-q").code == 0
    script = empty.root / "tools/x.sh"
    good, evil = hashlib.sha256(script.read_bytes()).hexdigest(), hashlib.sha256(b"echo evil\n").hexdigest()
    script.write_bytes(b"echo evil\n")
    for path in (empty.dot / "pipeline").rglob("*.json"):
        path.write_text(path.read_text().replace(good, evil))
    planned = llmos("run", "--dry-run", "--json")
    assert why(planned)["a"] == "tools/x.sh may be code and was not made here"
    ran(empty)
    assert statuses(llmos("run", "-q", "--json"))["a"] == "made" and script.read_text() == "1\n"
    assert set(statuses(llmos("run", "-q", "--json")).values()) == {"fresh"}


@pytest.mark.parametrize("command", ["bash -eo pipefail go", "cd sub && sh ../go", "sh -c 'sh go'", "cat go | sh"])
def test_a_script_is_found_behind_flags_folders_and_quotes(empty: Workspace, llmos, command):
    (empty.root / "go").write_text("true\n"), (empty.root / "sub").mkdir()
    written(empty, llmos, f'pipeline: {{go: {{sh: "{command}"}}}}\n')
    (empty.root / "go").write_text("echo evil\n")
    told = llmos("run", "-q")
    assert told.code == 5 and "go is code that is not trusted here" in told.err


def exchange(cache: Path, name: str, content: bytes) -> None:
    """As somebody who knows how a cache is laid out: the object, the result that names it, and that line's own hash."""
    sha256 = hashlib.sha256(content).hexdigest()
    target = cache / "objects" / sha256[:2] / sha256[2:]
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)
    for path in (cache / "results").glob("*.json"):
        result = json.loads(path.read_text())
        if name in result["outputs"]:
            path.chmod(0o644)
            del result["hash"]
            path.write_bytes(layout.text({**result, "outputs": {name: sha256}}))


FAILING = """\
pipeline:
  bad: {sh: echo so it goes >&2; exit 7}
  after: {sh: touch after, needs: [bad]}
  gate: {sh: exit 3}
  fine: {sh: echo fine > fine, outputs: [fine]}
"""


def test_failures_compose(empty: Workspace, llmos, tmp_path):
    """What depends on a failure is left out, the rest goes on; gates alone are 3."""
    (empty.root / "llmos.yaml").write_text(FAILING)
    llmos("trust", "--pipeline")
    files = ("--junit", tmp_path / "j.xml", "--summary", tmp_path / "s.md")
    told = llmos("run", "--json", *files)
    assert statuses(told) == {"bad": "failed", "after": "skipped", "gate": "failed", "fine": "made"}
    assert told.code == 1 and not (empty.root / "after").exists()
    assert llmos("run", "gate", "-q").code == 3
    plain = llmos("run", "-q")
    assert plain.code == 1 and "bad, gate did not succeed" in plain.err and "failed  bad: so it goes" in plain.out
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    summary = (tmp_path / "s.md").read_text()
    assert "| `bad` | **failed** |" in summary and "| `gate` | **gate failed** |" in summary
    assert why(llmos("run", "--dry-run", "--json"))["bad"] == "it failed"


LOUD = r"""printf '\033[31mFAILED\033[0m \033]8;;x\033\\<b>a|b</b>\001 & *c*\n' >&2; exit 1"""


def test_reports_are_well_formed_whatever_a_command_said(empty: Workspace, llmos, tmp_path):
    (empty.root / "llmos.yaml").write_text(json.dumps({"format": 1, "pipeline": {"loud": {"sh": LOUD}}}))
    llmos("trust", "--pipeline")
    assert llmos("run", "-q", "--junit", tmp_path / "j.xml", "--summary", tmp_path / "s.md").code == 1
    (error,) = ElementTree.parse(tmp_path / "j.xml").getroot().iter("error")
    assert error.get("message") == "FAILED <b>a|b</b> & *c*"
    *_, row = (tmp_path / "s.md").read_text().splitlines()
    assert row.endswith(r"| FAILED \<b\>a\|b\</b\> \& \*c\* |") and row.isprintable()


def test_what_failed_before_would_run_whatever_comes_before_it(shell: Workspace, llmos):
    (shell.root / "llmos.yaml").write_text(SHELL.replace("wc -l < clean.txt > count.txt", "exit 1"))
    llmos("trust", "--pipeline"), llmos("run", "-q")
    (shell.root / "raw.txt").write_text("three\n")
    planned = llmos("run", "--dry-run", "--json")
    assert (statuses(planned)["count"], why(planned)["count"]) == ("would run", "it failed; after clean")


def test_independent_stages_run_at_once(empty: Workspace, llmos):
    """Each waits until the other has begun."""
    wait = "touch {0}; for i in $(seq 200); do [ -e {1} ] && exit 0; sleep 0.05; done; exit 1"
    (empty.root / "llmos.yaml").write_text(
        f"pipeline:\n  one: {{sh: '{wait.format('a', 'b')}'}}\n  two: {{sh: '{wait.format('b', 'a')}'}}\n"
    )
    llmos("trust", "--pipeline")
    assert llmos("run", "--jobs", "2", "-q").code == 0


def test_what_a_command_left_in_the_background_is_not_waited_for(empty: Workspace, llmos):
    """As make does not; all that the command itself said is heard, a line without an end too."""
    command = "sleep 600 & echo $! > pid; seq 9000; printf end >&2"
    (empty.root / "llmos.yaml").write_text(f"pipeline: {{go: {{sh: '{command}', outputs: [pid]}}}}\n")
    llmos("trust", "--pipeline")
    began = time.monotonic()
    told = llmos("run")
    os.kill(int((empty.root / "pid").read_text()), signal.SIGKILL)
    assert told.code == 0 and time.monotonic() - began < 60
    assert "go: what it left running in the background goes on" in told.err
    log = (empty.dot / "pipeline/logs/go.txt").read_text().splitlines()
    assert sorted(log, key=lambda line: int(line) if line.isdigit() else 0) == ["end", *map(str, range(1, 9001))]


SAYING = {
    "echo a; echo b >&2; echo c": {"a", "b", "c"},
    "for i in 1 2 3 4 5 6 7 8; do echo $i >&2; done": set("12345678"),
    "seq 1 2000 >&2": {*map(str, range(1, 2001))},
    "yes | head -c 20000": {"y"},
    "printf '{\\n'; echo no document": {"{", "no document"},
    "echo '{\"a\": 1}'": {'{"a": 1}'},
    'echo \'{"schema": "llmos.a/1"}\'': set(),
}


@pytest.mark.parametrize("command", SAYING)
def test_a_command_that_leaves_nothing_behind_is_heard_out(tmp_path: Path, command: str) -> None:
    for _ in range(12):
        heard: list[str] = []
        ended = process.Processes().run(
            ["/bin/sh", "-c", command],
            cwd=tmp_path,
            env=os.environ,
            log=tmp_path / "log",
            hear=heard.append,
            began=lambda _: None,
        )
        assert ended.code == 0 and {*heard} == SAYING[command]
        assert (tmp_path / "log").read_text().splitlines() == heard
        assert ended.said == ({} if heard else {"schema": "llmos.a/1"})


def test_what_failed_is_said_by_its_last_error(empty: Workspace, llmos):
    command = "echo step 1 of 3; sleep 0.2; echo error: disk on fire >&2; sleep 0.2; echo ended; exit 1"
    (empty.root / "llmos.yaml").write_text(f"pipeline: {{go: {{sh: '{command}'}}}}\n")
    llmos("trust", "--pipeline")
    assert "go did not succeed: error: disk on fire" in llmos("run").err
    log = (empty.dot / "pipeline/logs/go.txt").read_text().splitlines()
    assert log == ["step 1 of 3", "error: disk on fire", "ended"]


def test_what_changed_while_it_ran_is_not_remembered(empty: Workspace, llmos):
    (empty.root / "in").write_text("1")
    (empty.root / "llmos.yaml").write_text("pipeline: {go: {sh: cp in out; echo 2 > in, inputs: [in], outputs: [out]}}")
    llmos("trust", "--pipeline")
    assert "not remembered" in why(llmos("run", "--json"))["go"]
    assert statuses(llmos("run", "--dry-run", "--json"))["go"] == "would run"


AXES = ", ".join(f"{variable}: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" for variable in "abcdefg")


@pytest.mark.parametrize(
    "text, told",
    [
        ("a: {}", "either a verb or a shell command"),
        ("a: {verb: train, sh: x}", "either a verb or a shell command"),
        ("a: {verb: trian}", "did you mean 'train'?"),
        ("a: {verb: prune}", "prune needs a REV"),
        ("a: {verb: train, need: [b]}", "did you mean 'needs'?"),
        ("a: {sh: x, needs: [b]}\n  c: {sh: y}", "no stage called 'b'"),
        ("a: {sh: x, needs: [c]}\n  c: {sh: y, needs: [a]}", "these stages wait for one another: a, c"),
        ("a: {sh: x, needs: [a]}", "a depends on itself"),
        ("a: {sh: x, outputs: [../y]}", "no place for an output"),
        ("a: {sh: x, outputs: [checkpoints/y]}", "no place for an output"),
        ("a: {sh: x, outputs: [y]}\n  c: {sh: x, outputs: [y/z]}", "a and c both write y"),
        ("a: {sh: x, outputs: ['${v}']}", "no variable 'v'"),
        ("a: {sh: x, foreach: {v: [1, 1]}}", "two stages would be called a/1"),
        ("a: {sh: x, foreach: {w: [1], v: []}}", "foreach gives v no value"),
        (f"a: {{sh: x, foreach: {{{AXES}}}}}", "a would be 10,000,000 stages, and a pipeline has 10,000 at most"),
        ("a/b: {sh: x}", "no name for a stage"),
        ('a: {sh: "echo \\0"}', "cannot have a NUL character"),
        ('a: {sh: x, foreach: {v: ["a\\0b"]}}', "cannot have a NUL character"),
        ('a: {sh: x, outputs: ["a\\0b"]}', "cannot have a NUL character"),
        ("a: {sh: x, foreach: {A=B: [1]}}", "'A=B' is no name for a variable"),
        ("stages: {up: {sh: x}}", "stages stand directly under `pipeline:`"),
        ("stages: {sh: x, foreach: {v: [1, 1]}}", "two stages would be called stages/1"),
        ("a: {verb: train, require: ['loss < 1']}", "only eval has gates"),
        ("a: {verb: export, rev: b}", "an export has one output"),
        ("a: {verb: train}\n  m: {verb: eval, rev: a, foreach: {v: [1, 2]}}\n  c: {verb: prune, rev: m}", "name one: m/1, m/2"),
        ("a: {verb: train, set: {train.max_step: 1}}", "did you mean 'max_steps'?"),
        ("a: {verb: eval, rev: base, require: [loss]}", "METRIC OP BOUND"),
    ],
)  # fmt: skip
def test_a_pipeline_that_makes_no_sense(empty: Workspace, llmos, text, told):
    (empty.root / "llmos.yaml").write_text(f"pipeline:\n  {text}\n")
    for words in (["run"], ["run", "--dry-run"]):
        said = llmos(*words)
        assert said.code == 2 and told in said.err


def test_no_pipeline_and_no_such_stage(shell: Workspace, llmos):
    assert "did you mean 'count'?" in llmos("run", "cuont").err
    (shell.root / "llmos.yaml").write_text("format: 1\n")
    told = llmos("run")
    assert told.code == 4 and "no `pipeline:`" in told.err


def test_config_check_reads_the_pipeline(shell: Workspace, llmos):
    assert llmos("config", "check").out.splitlines()[-1] == "ok  llmos.yaml"
    (shell.root / "llmos.yaml").write_text("pipeline: {a: {verb: trian}}\n")
    told = llmos("config", "check")
    assert told.code == 2 and "did you mean 'train'?" in told.err and "llmos.yaml:1:" in told.err


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_each_stage_comes_after_what_it_depends_on(empty: Workspace, needs, random):
    """Of any pipeline without circles, in whatever order it is written; what was in order stays in order."""
    edges = {f"s{at}": sorted(f"s{need}" for need in each if need < at) for at, each in enumerate(needs)}
    names = list(edges)
    written = random.sample(names, len(names))
    (empty.root / "llmos.yaml").write_text(
        "pipeline:\n" + "".join(f"  {name}: {{sh: x, needs: [{', '.join(edges[name])}]}}\n" for name in written)
    )
    ordered = [stage.name for stage in read(empty)]
    assert sorted(ordered) == sorted(names)
    assert all(ordered.index(need) < ordered.index(name) for name in names for need in edges[name])
    if all(written.index(need) < written.index(name) for name in names for need in edges[name]):
        assert ordered == written
    for name in names:
        needed = {stage.name for stage in chosen(read(empty), [name])}
        assert needed == {name}.union(*({stage.name for stage in chosen(read(empty), [need])} for need in edges[name]))


def test_an_output_that_was_not_made_is_a_failure_and_said(empty: Workspace, llmos, monkeypatch) -> None:
    monkeypatch.chdir(empty.root)
    (empty.root / "llmos.yaml").write_text("pipeline: {go: {sh: 'true', outputs: [never]}}\n")
    assert llmos("trust", "--pipeline").code == 0
    ran = llmos("run")
    assert (ran.code, "it ended well, and did not make never" in ran.err) == (1, True), ran.err
    assert "it failed" in llmos("run", "--dry-run").out


ELSES = {
    "an error of another API": ('echo \'{"error": "boom"}\'; exit 1', 1),
    "verdicts of another kind": ("echo '{\"verdicts\": [1, 2]}'; exit 1", 1),
    "a result of another kind": ('echo \'{"gates": {"a": 1}, "checkpoint": 5, "verdicts": {"x": 1}}\'', 0),
    "under our name": ('echo \'{"schema": "llmos.eval/1", "evaluations": [{"rev": 1}], "judged": 1}\'', 0),
}


@pytest.mark.parametrize(("command", "code"), ELSES.values(), ids=ELSES)
def test_json_of_others_is_text(empty: Workspace, llmos, command: str, code: int) -> None:
    pipeline = json.dumps({"format": 1, "pipeline": {"said": {"sh": command}, "other": {"sh": "true"}}})
    (empty.root / "llmos.yaml").write_text(pipeline)
    assert llmos("trust", "--pipeline").code == 0
    told = llmos("run", "--json")
    assert told.code == code
    assert statuses(told) == {"said": "failed" if code else "made", "other": "made"}
    assert json.loads((empty.dot / "pipeline" / "logs" / "said.txt").read_text()), "as it was said"
    assert llmos("run", "--dry-run", "--json").code == 0


def test_an_answer_of_ours_is_heard(empty: Workspace, llmos) -> None:
    said = {"schema": "llmos.error/1", "error": {"code": 4, "message": "there is no x", "hint": "make one"}}
    (empty.root / "said.json").write_text(json.dumps(said))
    (empty.root / "llmos.yaml").write_text("format: 1\npipeline:\n  said: {sh: cat said.json; exit 4}\n")
    assert llmos("trust", "--pipeline").code == 0
    told = llmos("run", "--json").json["stages"][0]
    assert (told["message"], told["hint"]) == ("there is no x", "make one")


def test_an_answer_may_be_one_long_line(empty: Workspace, llmos) -> None:
    said = {"schema": "llmos.error/1", "error": {"code": 4, "message": "x" * 3_000_000, "hint": "make one"}}
    (empty.root / "said.json").write_text(json.dumps(said))
    (empty.root / "llmos.yaml").write_text("format: 1\npipeline:\n  said: {sh: cat said.json; exit 4}\n")
    assert llmos("trust", "--pipeline").code == 0
    assert llmos("run", "--json").json["stages"][0]["hint"] == "make one"


def test_what_was_killed_says_by_what(empty: Workspace, llmos) -> None:
    (empty.root / "llmos.yaml").write_text("format: 1\npipeline:\n  slow: {sh: echo begun; kill -KILL $$}\n")
    assert llmos("trust", "--pipeline").code == 0
    told = llmos("run", "--json").json["stages"][0]
    assert told["message"] == "it ended with 137 (SIGKILL); the last that it said: begun"


def test_an_input_that_was_exchanged_with_its_old_times(shell: Workspace, llmos) -> None:
    old = (1.6e9, 1.6e9)
    raw = shell.root / "raw.txt"
    os.utime(raw, old)
    time.sleep(2.1)  # until then what was hashed is not remembered
    assert llmos("run", "-q").code == 0 and ran(shell)
    assert set(statuses(llmos("run", "--json")).values()) == {"fresh"}
    raw.write_text("six\nten\n"), os.utime(raw, old)
    assert why(llmos("run", "--dry-run", "--json"))["clean"] == "raw.txt is another one"


def test_a_report_that_cannot_be_written_is_known_before_anything_runs(shell: Workspace, llmos) -> None:
    told = llmos("run", "--junit", "/proc/nowhere/report.xml")
    assert (told.code, ran(shell)) == (1, [])
    assert told.err.startswith("error: cannot write /proc/nowhere/report.xml: no such file or directory\n")
    assert (llmos("run", "--summary", "").code, ran(shell)) == (2, [])


def test_an_output_that_is_a_link_to_a_folder_is_made_anew(empty: Workspace, llmos) -> None:
    command = "mkdir -p v; date +%N > v/a.csv; ln -sfn v out"
    (empty.root / "llmos.yaml").write_text(
        f"format: 1\npipeline:\n  link: {{sh: {json.dumps(command)}, outputs: [out]}}\n"
    )
    assert llmos("trust", "--pipeline").code == 0
    assert llmos("run", "-q").code == 0
    assert llmos("run", "-q", "--fresh").code == 0
    assert (empty.root / "out").is_symlink() and (empty.root / "v" / "a.csv").is_file()
