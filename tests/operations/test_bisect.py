"""bisect: the first of a line that breaks a gate, with few evaluations, each remembered."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.bisect import first_broken, most
from llmos_cli.operations.bisect_plan import steps
from llmos_cli.operations.init import init
from llmos_cli.operations.tag import tag
from tests.operations.conftest import committed, make

QUICK = ("-s", "eval.latency=false", "-q")
GATE = ("--require", "loss <= 1.01 * base", *QUICK)
LENGTH, BREAKS = 7, 5


@given(st.integers(1, 300).flatmap(lambda length: st.tuples(st.just(length), st.integers(0, length))))
def test_the_first_that_breaks_with_few_questions(case):
    length, breaks = case
    asked = []
    found = first_broken(length, lambda at: asked.append(at) or at < breaks)
    assert found == (breaks if breaks < length else None)
    assert len(asked) == len(set(asked)) <= most(length)


@given(st.data(), st.integers(1, 40))
def test_a_plan_follows_the_search(data, length):
    """Of what is measured the answers are known; where the line breaks is tried everywhere that fits them."""
    truth = data.draw(st.integers(0, length))
    measured = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    planned = steps(measured, [at < truth if known else None for at, known in enumerate(measured)])
    counts = []
    for breaks in range(length + 1):
        if all((at < breaks) == (at < truth) for at in range(length) if measured[at]):
            asked: list[int] = []
            first_broken(length, lambda at, breaks=breaks, asked=asked: asked.append(at) or at < breaks)
            assert all(planned.steps[at] <= step for step, at in enumerate(asked, 1))
            counts.append(sum(not measured[at] for at in asked))
    assert max(counts) <= planned.most <= most(length)
    if not any(measured):
        assert max(counts) == planned.most


@pytest.fixture(scope="module")
def _made(tmp_path_factory) -> Workspace:
    """Seven checkpoints of which the sixth shakes the weights; what is before and after leaves them be."""
    directory = tmp_path_factory.mktemp("bisect") / "workspace"
    init(directory, "image-classification")
    ws = Workspace.find(directory)
    make(ws, "image-classification")

    def shake(model):
        torch.manual_seed(1)
        for weight in model.parameters():
            weight += 0.5 * torch.randn(weight.shape)

    parents: tuple[str, ...] = ()
    for at in range(LENGTH):
        step = committed(
            ws,
            "image-classification",
            operation="prune" if at else "train",
            parents=parents,
            change=shake if at >= BREAKS else lambda model: None,
            sets={"train.max_steps": at + 1},
        )
        parents = (step.id,)
    tag(ws, "base", f"HEAD~{LENGTH - 1}")
    return ws


@pytest.fixture
def long(_made: Workspace, monkeypatch) -> Workspace:
    monkeypatch.chdir(_made.root)
    return _made


def line(ws: Workspace) -> list[str]:
    return [ws.resolve(f"HEAD~{LENGTH - 1 - at}") for at in range(LENGTH)]


def test_finds_what_broke_it_and_remembers(long: Workspace, llmos):
    ran = llmos("bisect", *GATE, "--json")
    assert ran.code == 0
    found = ran.json
    assert (found["first"], found["before"]) == (line(long)[BREAKS], line(long)[BREAKS - 1])
    assert len(found["judged"]) <= most(LENGTH) < LENGTH
    assert {judged["place"]: judged["passed"] for judged in found["judged"]} == {
        judged["place"]: judged["place"] <= BREAKS for judged in found["judged"]
    }
    again = llmos("bisect", *GATE, "--json").json
    assert all(judged["cached"] for judged in again["judged"])
    told = llmos("bisect", *GATE).out
    assert f"{found['first'][:12]} is the first that does not hold: {len(found['judged'])} of 7 were evaluated" in told
    assert f"`llmos diff {found['before'][:12]} {found['first'][:12]}`" in told


def test_from_an_ancestor_on_and_of_a_list(long: Workspace, llmos):
    ids = line(long)
    since = llmos("bisect", *GATE, "--since", ids[4], "--json").json
    assert since["first"] == ids[BREAKS] and since["length"] == 3
    listed = llmos("bisect", *GATE, ids[0], ids[2], ids[6], "--json").json
    assert (listed["first"], listed["before"], listed["length"]) == (ids[6], ids[2], 3)


def test_a_bound_of_another_revision_is_on_the_same_samples(long: Workspace, llmos):
    found = llmos("bisect", "--require", f"loss == {line(long)[0][:12]}", *QUICK, "--json").json
    assert found["first"] == line(long)[BREAKS]


def test_the_end_holds_or_the_beginning_does_not(long: Workspace, llmos):
    fine = llmos("bisect", "--require", "loss <= 1000", *QUICK)
    assert fine.code == 0 and "the end of the line holds: 1 of 7" in fine.out
    never = llmos("bisect", "--require", "loss <= 0", *QUICK)
    assert never.code == 0 and f"{line(long)[0][:12]} begins the line and does not hold: 2 of 7" in never.out
    assert "`--since REV`" in never.out


@pytest.mark.parametrize(
    "words, code, told",
    [
        ([], 2, "--require"),
        (["--require", "nonsense"], 2, "METRIC OP BOUND"),
        (["--require", "loss < 1", "--since", "HEAD", "HEAD~1"], 2, "not an ancestor"),
        (["--require", "loss < 1", "--since", "HEAD~2", "HEAD~1", "HEAD"], 2, "--since begins one line"),
        (["--require", "kl_base < 1", *QUICK], 3, "nothing measured here is called kl_base"),
        (["--require", "loss < 1", "nobody"], 4, "nobody"),
    ],
)
def test_what_cannot_be_asked(long: Workspace, llmos, words, code, told):
    ran = llmos("bisect", *words)
    assert ran.code == code and told in ran.err


def test_removed_weights_are_passed_over_and_told(long: Workspace, llmos, tmp_path, monkeypatch):
    shutil.copytree(long.root, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    ids = line(long)
    for gone in (ids[BREAKS], ids[3]):
        assert llmos("rm", gone, "--force").code == 0
    found = llmos("bisect", *GATE, "--json").json
    assert (found["first"], found["before"], found["suspects"]) == (ids[6], ids[4], [ids[BREAKS]])
    assert f"or {ids[BREAKS][:12]} before it" in llmos("bisect", *GATE).out


def test_a_dry_run_says_what_it_would_look_at_and_computes_nothing(long: Workspace, llmos, tmp_path, monkeypatch):
    shutil.copytree(long.root, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    copy = Workspace.find(tmp_path / "copy")
    for record in copy.runs.list():
        if record.operation == "eval":
            shutil.rmtree(record.path)
    ids, gate = line(long), ("--require", "loss <= 1.01 * base", "-s", "eval.latency=false", "-q", "--dry-run")
    fresh = llmos("bisect", *gate, "--json").json
    assert (
        fresh["evaluations"] == most(LENGTH)
        and fresh["seconds"] is None
        and not any(e["measured"] for e in fresh["looks"])
    )
    assert [look["checkpoint"] for look in fresh["looks"] if look["step"] in (1, 2, 3)] == [ids[6], ids[0], ids[3]]
    runs = len(copy.runs.list())
    assert llmos("eval", "base", "HEAD", "-s", "eval.latency=false", "-q").code == 0
    some = llmos("bisect", *gate, "--json").json
    assert {e["checkpoint"]: e["holds"] for e in some["looks"] if e["measured"]} == {ids[0]: True, ids[6]: False}
    assert some["evaluations"] == most(LENGTH) - 2 and some["seconds"] > 0
    assert "would compute at most 3 evaluations, " in llmos("bisect", *gate).out
    assert len(copy.runs.list()) == runs + 2
    llmos("bisect", *GATE)
    assert "all that it would look at is measured: nothing would be computed" in llmos("bisect", *gate).out


def test_a_line_with_a_hole_is_searched_around_it(long: Workspace, llmos, tmp_path, monkeypatch):
    shutil.copytree(long.root, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    ids = line(long)
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / ids[BREAKS])
    assert llmos("fsck", "--accept-loss", ids[BREAKS][:12]).code == 0
    found = llmos("bisect", *GATE, "--json").json
    assert (found["first"], found["before"], found["suspects"]) == (ids[6], ids[4], [ids[BREAKS]])
