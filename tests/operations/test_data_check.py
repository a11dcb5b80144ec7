"""data check, and masking on load: training, evaluation and snapshots see the same rows without personal data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.data.sources import load
from llmos_cli.errors import UsageError
from llmos_cli.options.data import DataOptions
from tests.data.conftest import Loader
from tests.data.conftest import loaded as loaded

LABELLED = ("-s", "data.task=text-classification")


@pytest.fixture
def letters(workspace: Workspace) -> Path:
    """Rows with something wrong in them: twice the same, an empty one, personal data in the second and in the last."""
    texts = [
        "hello",
        "write to jane@mail.example",
        "hello",
        " ",
        *(f"row {at}" for at in range(40)),
        "call (415) 555-2671",
    ]
    file = workspace.root / "letters.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": str(at % 2)}) + "\n" for at, text in enumerate(texts)))
    return file


def test_what_is_told_of_a_source(letters: Path, llmos):
    told = llmos("data", "check", "letters.jsonl", *LABELLED, "--pii", "--json").json
    (part,) = told["parts"]
    assert (part["rows"], part["empty"], part["broken"], part["duplicates"]) == (45, 1, 0, 1)
    assert (part["pii"], part["kinds"], part["pii_rows"]) == (2, {"EMAIL": 1, "PHONE": 1}, [2, 45])
    assert part["characters"][0] == 1 and part["characters"][2] == len("write to jane@mail.example")
    shown = llmos("data", "check", "letters.jsonl", *LABELLED, "--pii")
    assert "row 2  write to [EMAIL]" in shown.out and "row 45  call [PHONE]" in shown.out
    assert not any(secret in shown.out + json.dumps(told) for secret in ("jane", "2671"))
    assert "personal" not in llmos("data", "check", "letters.jsonl", *LABELLED).out


def test_a_gate(letters: Path, llmos):
    ran = ("data", "check", "letters.jsonl", *LABELLED)
    failed = llmos(*ran, "--require", "pii == 0", "--require", "duplicates <= 1")
    assert failed.code == 3 and "the data does not pass: 'pii == 0' (pii is 2, the bound 0)" in failed.err
    assert "data.mask_pii: true" in failed.err and "passed  duplicates <= 1" in failed.out
    assert llmos(*ran, "--require", "pii == 0", "--json").code == 3
    assert llmos(*ran, "--require", "pii.iban == 0", "--require", "overlap == 0", "--require", "rows >= 45").code == 0
    assert llmos(*ran, "--require", "nothing == 0").code == 3
    assert llmos(*ran, "--require", "pii == base").code == 2 and llmos(*ran, "--require", "pii").code == 2


def test_rows_that_are_broken_are_counted(letters: Path, llmos):
    with letters.open("a") as file:
        file.write('{"text": null, "label": "1"}\n')
    told = llmos("data", "check", "letters.jsonl", *LABELLED, "--json").json
    assert told["parts"][0]["broken"] == 1 and "row 46 of letters.jsonl has no text" in told["parts"][0]["why"]
    assert told["unsplit"] and told["overlap"] == {}


def test_inputs_of_two_splits(workspace: Workspace, llmos):
    folder = workspace.root / "mail"
    folder.mkdir()
    rows = [json.dumps({"text": f"row {at}", "label": str(at % 2)}) + "\n" for at in range(40)]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "test.jsonl").write_text(
        "".join(rows[:7]).replace('"label": "1"', '"label": "0"') + '{"text": "new", "label": "1"}\n'
    )
    (folder / "dev.jsonl").write_text("".join(rows).replace("row", "line"))
    told = llmos("data", "check", "mail", *LABELLED, "--json").json
    assert told["overlap"] == {"test": 7, "validation": 0}, "whatever their labels"
    assert llmos("data", "check", "mail", *LABELLED, "--require", "overlap == 0").code == 3


def test_what_training_would_read_and_pictures(workspace: Workspace, llmos):
    told = llmos("data", "check", "--json").json
    assert [part["source"] for part in told["parts"]] == ["builtin:pydoc"] * 3
    assert {part["split"] for part in told["parts"]} == {"train", "validation", "test"} and told["metrics"]["rows"] > 50
    digits = ("data", "check", "builtin:digits", "-s", "data.task=image-classification")
    assert llmos(*digits, "--json").json["metrics"]["rows"] == 1797
    assert llmos(*digits, "--pii").code == 2


def test_masked_on_load(loaded: Loader, tmp_path: Path):
    file = tmp_path / "mail.csv"
    file.write_text("text,label\n" + "".join(f"jane{at}@mail.example wrote {at % 7},{at % 2}\n" for at in range(60)))
    plain, masked = loaded(file), loaded(file, mask_pii=True)
    texts = [text for rows in masked.splits.values() for text in rows["text"]]
    assert set(texts) == {f"[EMAIL] wrote {at}" for at in range(7)}
    assert masked.fingerprint["masked"] == {"rules": 3} and "masked" not in plain.fingerprint
    assert masked.fingerprint["splits"] != plain.fingerprint["splits"]
    assert masked.notes[-1] == "personal data was masked in 60 rows: 60 EMAIL"
    where = {name: set(rows["text"]) for name, rows in masked.splits.items()}
    assert not where["train"] & where["test"], "rows that are equal now are in one split"
    assert loaded(file, mask_pii=True).fingerprint == masked.fingerprint


def test_words_keep_their_number_and_pictures_have_none(loaded: Loader, tmp_path: Path):
    rows = [{"tokens": ["to", "jane@mail.example", str(at)], "tags": ["O", "B", "O"]} for at in range(40)]
    (tmp_path / "tagged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = loaded(tmp_path / "tagged.jsonl", ("tokens", "tags"), mask_pii=True).splits["train"]
    assert train["tokens"][0][:2] == ["to", "[EMAIL]"] and len(train["tokens"][0]) == len(train["tags"][0]) == 3
    with pytest.raises(UsageError, match="no text to mask"):
        load(DataOptions(source="builtin:digits", mask_pii=True), ("image", "label"), cache=tmp_path / "c")


def test_training_evaluation_and_snapshot_see_the_same(letters: Path, workspace: Workspace, llmos):
    (workspace.configs / "train.yaml").write_text(
        "data: {task: text-classification, source: letters.jsonl, sequence_length: 16, mask_pii: true}\n"
        "model: {arch: bag}\ntrain: {max_steps: 1}\n"
    )
    trained = llmos("train")
    assert trained.code == 0 and "personal data was masked in 2 rows: 1 EMAIL, 1 PHONE" in trained.err + trained.out
    made = workspace.manifest(workspace.resolve()).made
    assert made.config["data"]["mask_pii"] is True and made.data["masked"] == {"rules": 3}
    vocabulary = (workspace.checkpoint().path / "tokenizer.json").read_text()
    assert "jane" not in vocabulary
    assert llmos("data", "snapshot", "--name", "masked", "-q").code == 0
    kept = b"".join(path.read_bytes() for _, path in workspace.snapshots.stored())
    assert b"[EMAIL]" in kept and b"jane" not in kept and b"2671" not in kept
    other = workspace.root / "other.jsonl"
    other.write_text(letters.read_text().replace("row", "line"))
    assert llmos("eval", "-q", "-s", "data.source=other.jsonl").code == 0
    (last,) = [run for run in workspace.runs.list() if run.operation == "eval"]
    assert "mask_pii: true" in (last.path / "config.yaml").read_text(), "another source is masked like the first"
    letters.unlink()
    assert llmos("eval", "-q", "--fresh").code == 0


def test_a_file_of_texts_is_looked_through_whatever_the_workspace_learns_from(
    new_workspace, llmos, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(new_workspace(tmp_path / "pictures", "image-classification").root)
    Path("letters.jsonl").write_text('{"text": "ask jane@mail.example"}\n{"text": "or not"}\n')
    told = llmos("data", "check", "letters.jsonl", "--pii", "--json").json
    assert (told["metrics"]["rows"], told["metrics"]["pii.email"]) == (2, 1)
    assert llmos("data", "check", "builtin:digits", "--pii").err.startswith("error: pictures have no text")
