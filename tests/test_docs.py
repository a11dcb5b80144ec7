"""The documents say what is so: the reference is the help, links lead somewhere, commands and options that are shown exist."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "cli.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EVERYWHERE = {"--help", "--version"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_reference_is_up_to_date():
    reference = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["reference"]()
    assert REFERENCE.read_text() == reference, "run `make docs`"


@pages
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", prose(page))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pages
def test_no_block_is_empty(page):
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    assert all(block.strip() for block in fences)
    assert page.read_text().count("\n```") % 2 == 0, "a fence is open"


@pages
def test_commands_that_are_shown_exist(page):
    known = reference()
    unknown = [line for line in shown(page) if lacking(line, known)]
    assert unknown == []


def test_the_workflow_is_yaml_and_types_what_exists():
    workflow = yaml.safe_load((ROOT / "docs" / "github-workflow.yml").read_text())
    steps = workflow["jobs"]["model"]["steps"]
    typed = [line for step in steps for line in step.get("run", "").splitlines() if line.startswith("llmos ")]
    known = reference()
    assert any(line.startswith("llmos run --cache-dir") for line in typed)
    assert [line for line in typed if lacking(line, known)] == []


def test_the_workflow_keeps_what_was_made_whatever_fails():
    """What the one step saves is what the other looks for, under a key of its own."""
    workflow = yaml.safe_load((ROOT / "docs" / "github-workflow.yml").read_text())
    steps = {
        step.get("uses", step.get("run", "")).partition("@")[0]: step for step in workflow["jobs"]["model"]["steps"]
    }
    before, after = steps["actions/cache/restore"]["with"], steps["actions/cache/save"]["with"]
    assert steps["actions/cache/save"]["if"] == "always()" and "actions/cache" not in steps
    assert {"path": before["path"], "key": before["key"]} == after and before["key"].startswith(before["restore-keys"])
    assert any(name.startswith(f"llmos run --cache-dir {after['path']} ") for name in steps)
    assert [*steps].index("actions/cache/save") > [*steps].index(next(n for n in steps if n.startswith("llmos run ")))


def test_the_readme_shows_the_demo_whole():
    """Every command that the demo types stands in the transcript."""
    typed = re.findall(r"^type_ (llmos \S+)", (ROOT / "scripts" / "demo.sh").read_text(), flags=re.M)
    readme = (ROOT / "README.md").read_text()
    assert len(typed) > 10
    assert [command for command in typed if f"$ {command}" not in readme] == []


def prose(page: Path) -> str:
    """Without code: transcripts may look like links."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)


def shown(page: Path) -> Iterator[str]:
    """What is typed in blocks, commands joined by `&&` or set side by side each on its own; without comments and what follows a pipe."""
    for line in re.findall(r"^(?:    |\$ )(llmos .*)$", page.read_text(), flags=re.M):
        for command in re.split(r" && |\s{2,}(?=llmos )", line):
            if command.startswith("llmos "):
                yield re.split(r"\s{2,}#|\s#\s| [|;] ", command)[0].rstrip("\\ ")


def reference() -> dict[str, set[str]]:
    """verb -> the options that its section names; "" holds those of every verb."""
    sections = re.split(r"^#{2,4} llmos ?", REFERENCE.read_text(), flags=re.M)[1:]
    options = {
        part.split("\n", 1)[0].strip(): set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", part)) for part in sections
    }
    return {verb: names | options[""] | EVERYWHERE for verb, names in options.items()}


def lacking(command: str, known: dict[str, set[str]]) -> str:
    """What of a command line does not exist; "" where all does."""
    words = shlex.split(command)[1:]
    while words and words[0].startswith("-"):  # options before the verb, with their values
        takes = words[0] in ("-C", "--wait")
        words = words[2 if takes else 1 :]
    if not words:
        return ""
    verb = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
    if verb not in known:
        return f"no verb {verb}"
    options = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
    return ", ".join(sorted(options - known[verb]))


def test_a_verb_or_an_option_that_does_not_exist_is_found():
    known = reference()
    assert lacking("llmos prnue --method wanda", known) == "no verb prnue"
    assert lacking("llmos -C x prune --metod wanda", known) == "--metod"
    assert lacking("llmos op log -n 3", known) == ""
