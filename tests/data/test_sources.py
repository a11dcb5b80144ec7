from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest

from llmos_cli.data import files
from llmos_cli.data.sources import builtins, load
from llmos_cli.errors import LlmosError, NotFound, UsageError
from llmos_cli.options.data import DataOptions


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet", "saved"])
def test_every_form_of_a_table_is_the_same_rows(form, source, loaded, rows):
    splits = loaded(source(form)).splits
    assert list(splits) == ["train", "validation", "test"]
    read = [{"text": text, "label": label} for split in splits.values() for text, label in split]
    assert sorted(read, key=str) == sorted(rows, key=str)


def test_forms_agree_on_splits_and_fingerprint(source, loaded):
    assert loaded(source("csv")).fingerprint["splits"] == loaded(source("jsonl")).fingerprint["splits"]


def test_urls_and_compressed_files_are_read(source, loaded):
    plain = source("csv")
    with fsspec.open("memory://box/mail.csv", "wb") as file:
        file.write(plain.read_bytes())
    plain.with_suffix(".csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    same = [
        loaded(place).fingerprint["splits"]
        for place in (plain, f"file://{plain}", "memory://box/mail.csv", f"{plain}.gz")
    ]
    assert all(other == same[0] for other in same)


def archive(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for file in sorted(folder.rglob("*")):
            zipped.write(file, file.relative_to(folder))
    return path


def test_chained_urls_are_read(tmp_path, source, loaded):
    plain = source("csv")
    (tmp_path / "box" / "in").mkdir(parents=True)
    (tmp_path / "box" / "in" / "mail.csv").write_bytes(plain.read_bytes())
    (tmp_path / "box" / "mail.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    zipped = archive(tmp_path / "mail.zip", tmp_path / "box")
    fsspec.filesystem("memory").put(str(zipped), "/chained/mail.zip")
    same = [
        loaded(place).fingerprint["splits"]
        for place in (
            plain,
            f"zip://in/mail.csv::{zipped}",
            f"zip://mail.csv.gz::file://{zipped}",
            f"zip://in/*.csv::{zipped}",
            f"zip://in::{zipped}",
            "zip://in/mail.csv::memory://chained/mail.zip",
            f"simplecache::zip://in/mail.csv::{zipped}",
        )
    ]
    assert all(other == same[0] for other in same)


def test_the_path_that_a_chain_ends_in_is_that_of_the_workspace(tmp_path, source):
    (tmp_path / "box").mkdir()
    source("csv").rename(tmp_path / "box" / "mail.csv")
    archive(tmp_path / "mail.zip", tmp_path / "box")
    cache = tmp_path / ".llmos" / "cache"
    assert len(load(DataOptions(source="zip://mail.csv::mail.zip"), ("text", "label"), cache=cache).splits["train"])


def test_splits_and_pictures_of_an_archive(tmp_path, loaded):
    for name, words in {"train": "abcdefghijklmnopqrst", "test": "xyz"}.items():
        (tmp_path / "mails").mkdir(exist_ok=True)
        rows = "".join(f"{w},{i % 2}\n" for i, w in enumerate(words))
        (tmp_path / "mails" / f"{name}.csv").write_text(f"text,label\n{rows}")
    mails = archive(tmp_path / "mails.zip", tmp_path / "mails")
    assert list(loaded(f"zip://::{mails}").splits["test"]["text"]) == ["x", "y", "z"]
    pictures(tmp_path / "data", 100)
    data = archive(tmp_path / "data.zip", tmp_path / "data")
    splits = loaded(f"zip://labels.jsonl::{data}", ("image", "label")).splits
    assert set().union(*(shades(split["image"]) for split in splits.values())) == set(range(100, 112))


def test_an_archive_that_is_none_is_refused(tmp_path, loaded):
    with pytest.raises(NotFound, match=r"no file .*/none\.zip"):
        loaded(f"zip://mail.csv::{tmp_path}/none.zip")
    (tmp_path / "broken.zip").write_text("not an archive")
    with pytest.raises(UsageError, match=r"cannot read .*broken\.zip"):
        loaded(f"zip://mail.csv::{tmp_path}/broken.zip")
    archive(tmp_path / "mail.zip", tmp_path)
    with pytest.raises(NotFound, match=r"no file or folder zip://mail\.csv"):
        loaded(f"zip://mail.csv::{tmp_path}/mail.zip")


def test_a_saved_dataset_may_be_elsewhere(source, loaded):
    folder = source("saved")
    fsspec.filesystem("memory").put(str(folder), "/saved", recursive=True)
    assert loaded("memory://saved").fingerprint["splits"] == loaded(folder).fingerprint["splits"]


def test_relative_paths_are_those_of_the_workspace(tmp_path, source):
    path = source("csv")
    cache = tmp_path / ".llmos" / "cache"
    assert len(load(DataOptions(source=path.name), ("text", "label"), cache=cache).splits["train"])


def test_splits_are_told_by_file_names_and_completed(tmp_path, loaded):
    folder = tmp_path / "mails"
    folder.mkdir()
    for name, words in {"train": "abcdefghijklmnopqrst", "test": "xyz"}.items():
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(f"{w},{i % 2}\n" for i, w in enumerate(words)))
    splits = loaded(folder, validation_fraction=0.2).splits
    assert list(splits["test"]["text"]) == ["x", "y", "z"]
    assert len(splits["train"]) + len(splits["validation"]) == 20
    assert set(splits["train"]["label"]) == {"0", "1"}


def test_splits_can_be_named(tmp_path, loaded):
    (tmp_path / "a.csv").write_text("text,label\none,x\ntwo,y\n")
    (tmp_path / "b.csv").write_text("text,label\nthree,x\nfour,y\n")
    splits = loaded(
        None, splits={"train": str(tmp_path / "a.csv"), "test": str(tmp_path / "b.csv")}, validation_fraction=0.4
    ).splits
    assert list(splits["test"]["text"]) == ["three", "four"]
    with pytest.raises(UsageError, match="neither a file nor a split"):
        loaded(tmp_path / "a.csv", splits={"test": "dev"})


def test_several_sources_repeat_in_training_and_one_is_judged(tmp_path, loaded):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(50)))
    first, second = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    options = DataOptions.model_validate({"source": [{"source": first, "repeat": 3}, second], "evaluate": first})
    splits = load(options, ("text",), cache=tmp_path / "cache").splits
    once = load(DataOptions(source=first), ("text",), cache=tmp_path / "cache").splits
    assert sum(text.startswith("a") for text in splits["train"]["text"]) == 3 * len(once["train"])
    assert list(splits["test"]["text"]) == list(once["test"]["text"])


def test_text_files_are_documents_and_long_ones_passages(tmp_path, loaded):
    folder = tmp_path / "texts"
    folder.mkdir()
    book = "\n\n".join(f"Chapter {i}. " + "All work and no play. " * 20 for i in range(200))
    (folder / "book.txt").write_text(book)
    (folder / "note.md").write_text("A short note.")
    splits = loaded(folder, ("text",), test_fraction=0.2, validation_fraction=0.2).splits
    read = [text for split in splits.values() for text in split["text"]]
    assert "A short note." in read
    assert sum(map(len, read)) == len(book) + len("A short note.")
    assert all(len(text) < 12_100 for text in read)


def test_a_short_text_is_told_what_a_row_is(tmp_path, loaded):
    (tmp_path / "note.txt").write_text("A short note.\n\nIn two parts.")
    with pytest.raises(UsageError, match="has 1 different rows") as raised:
        loaded(tmp_path / "note.txt", ("text",))
    assert "until it has more than 32,000 characters" in raised.value.hint


def test_conll_files(tmp_path, loaded):
    path = tmp_path / "news.conll"
    path.write_text("-DOCSTART- O\n\n" + "".join(f"Ann{i} NNP B-PER\nsmiles VBZ O\n. . O\n\n" for i in range(30)))
    splits = loaded(path, ("tokens", "tags")).splits
    assert splits["train"]["tokens"][0][1:] == ["smiles", "."]
    assert splits["train"]["tags"][0] == ["B-PER", "O", "O"]
    assert loaded(path, ("tokens", "tags"), columns={"tags": "2"}).splits["train"]["tags"][0] == ["NNP", "VBZ", "."]


def test_words_and_tags_from_a_table(tmp_path, loaded):
    path = tmp_path / "tagged.jsonl"
    path.write_text("".join(json.dumps({"words": f"w{i} x", "ner_tags": ["A", "B"]}) + "\n" for i in range(30)))
    row = next(iter(loaded(path, ("tokens", "tags")).splits["test"]))
    assert row[0][1:] == ["x"] and row[1] == ["A", "B"]


def test_image_folders_take_labels_from_folders(tmp_path, loaded):
    from PIL import Image

    for kind, shade in {"dark": 10, "light": 240}.items():
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (6, 4), shade + i % 12).save(tmp_path / "pictures" / kind / f"{i}.png")
    fsspec.filesystem("memory").put(f"{tmp_path}/pictures", "/pictures", recursive=True)
    options = {"test_fraction": 0.2, "validation_fraction": 0.2}
    here, elsewhere = (loaded(at, ("image", "label"), **options) for at in (tmp_path / "pictures", "memory://pictures"))
    assert here.fingerprint["splits"] == elsewhere.fingerprint["splits"]
    splits = here.splits
    assert set(splits["train"]["label"]) == {"dark", "light"}
    assert sum(len(split) for split in splits.values()) == 24
    assert splits["train"]["image"][0].startswith(b"\x89PNG")


def pictures(folder: Path, shade: int) -> None:
    """Twelve of a shade, and a table that says where each lies, from its own folder."""
    from PIL import Image

    (folder / "img").mkdir(parents=True)
    for i in range(12):
        Image.new("L", (4, 4), shade + i).save(folder / "img" / f"{i}.png")
    lines = [json.dumps({"file_name": f"img/{i}.png", "label": "even" if i % 2 == 0 else "odd"}) for i in range(12)]
    (folder / "labels.jsonl").write_text("\n".join(lines))


def shades(column):
    """The first pixel of each picture."""
    from llmos_cli.data.pixels import opened

    return {int(opened(image)[0, 0]) for image in column}


def test_paths_of_images_are_those_of_the_tables_folder_then_the_workspaces(tmp_path, loaded, monkeypatch):
    pictures(tmp_path / "data", 100)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    here = loaded(tmp_path / "data" / "labels.jsonl", ("image", "label")).splits
    assert set().union(*(shades(split["image"]) for split in here.values())) == set(range(100, 112))

    fsspec.filesystem("memory").put(f"{tmp_path}/data", "/shades", recursive=True)
    assert shades(loaded("memory://shades/labels.jsonl", ("image", "label")).splits["train"]["image"]) <= set(
        range(100, 112)
    )

    (tmp_path / "data" / "labels.jsonl").rename(tmp_path / "elsewhere" / "labels.jsonl")
    cache, table = (
        tmp_path / "data" / ".llmos" / "cache",
        DataOptions(source=str(tmp_path / "elsewhere" / "labels.jsonl")),
    )
    assert shades(load(table, ("image", "label"), cache=cache).splits["train"]["image"]) <= set(range(100, 112))
    with pytest.raises(UsageError, match=r"there is no image img/\d+.png") as missed:
        loaded(tmp_path / "elsewhere" / "labels.jsonl", ("image", "label"))
    assert str(tmp_path / "elsewhere") in missed.value.hint


def test_single_pictures_are_rows_without_labels(tmp_path, loaded):
    pictures(tmp_path / "data", 100)
    (one,) = files.read(str(tmp_path / "data/img/3.png"), DataOptions(), ("image",), cache=tmp_path / "cache").values()
    assert shades(one["image"]) == {103}
    (ten,) = files.read(str(tmp_path / "data/img/1*.png"), DataOptions(), ("image",), cache=tmp_path / "cache").values()
    assert shades(ten["image"]) == {101, 110, 111}
    with pytest.raises(UsageError, match="nothing says what they show"):
        loaded(tmp_path / "data/img/3.png", ("image", "label"))


def test_tables_of_the_same_names_in_two_folders_do_not_take_each_others_images(tmp_path, loaded):
    pictures(tmp_path / "data" / "train", 10)
    pictures(tmp_path / "data" / "test", 200)
    splits = loaded(tmp_path / "data", ("image", "label"), format="json").splits
    assert shades(splits["test"]["image"]) == set(range(200, 212))
    assert shades(splits["train"]["image"]) | shades(splits["validation"]["image"]) == set(range(10, 22))
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "one")
    (tmp_path / "data" / "test").rename(tmp_path / "data" / "two")
    with pytest.raises(UsageError, match="could be"):
        loaded(tmp_path / "data", ("image", "label"), format="json")


def test_columns_are_guessed_told_and_missed(tmp_path, loaded):
    path = tmp_path / "odd.csv"
    path.write_text("comment,verdict,stars\n" + "".join(f"c{i},v{i % 2},{i}\n" for i in range(30)))
    told = loaded(path, columns={"text": "comment", "label": "verdict"}).splits
    assert told["train"]["text"][0].startswith("c") and told["train"]["label"][0].startswith("v")
    with pytest.raises(UsageError, match=r"has no column coment \(it has comment, verdict, stars\)") as raised:
        loaded(path, columns={"text": "coment"})
    assert "Did you mean comment?" in raised.value.hint
    with pytest.raises(UsageError, match="no column that looks like text"):
        loaded(path)


BAD = {
    "empty": ("", "is empty"),
    "header alone": ("text,label\n", "has no rows"),
    "ragged": ('text,label\n"a,b\n', "cannot be read as csv"),
    "hole": ("text,label\n" + "".join(f"t{i},a\n" for i in range(20)) + ",b\n", "row 21 of .*csv has no text"),
    "few": ("text,label\na,x\nb,y\n", "2 different rows, too few"),
}


@pytest.mark.parametrize("content, sentence", BAD.values(), ids=BAD)
def test_bad_tables_are_one_sentence(content, sentence, tmp_path, loaded):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        loaded(tmp_path / "bad.csv")


def test_a_slip_in_a_files_name_is_told_without_asking_the_hub(tmp_path, loaded, monkeypatch):
    (tmp_path / "mine.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match=r"no file or folder mine\.csb") as told:
        loaded("mine.csb")
    assert told.value.hint == "did you mean mine.csv?"


def test_bad_places_are_one_sentence(tmp_path, loaded):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "torn.conll").write_text("word\n")
    (tmp_path / "folder").mkdir()
    cases = {
        "missing.csv": (NotFound, "no file or folder missing.csv"),
        "owner/nothing-here": (NotFound, "neither a file here nor could it be fetched"),
        "builtin:pydocs": (UsageError, "no data set builtin:pydocs"),
        str(tmp_path / "binary.txt"): (UsageError, "not UTF-8"),
        str(tmp_path / "broken.jsonl"): (UsageError, "cannot be read as json"),
        str(tmp_path / "folder"): (UsageError, "has no files"),
    }
    for source, (kind, sentence) in cases.items():
        with pytest.raises(kind, match=sentence):
            loaded(source, ("text",))
    with pytest.raises(UsageError, match=r"line 1 of .* has 1 column"):
        loaded(tmp_path / "torn.conll", ("tokens", "tags"))
    with pytest.raises(UsageError, match=r"data\.source is not set"):
        loaded(None)
    with pytest.raises(UsageError, match="plain text, which has no labels"):
        (tmp_path / "fine.txt").write_text("fine")
        loaded(tmp_path / "fine.txt")
    with pytest.raises(LlmosError, match=r"data\.format cvs is unknown"):
        loaded(tmp_path / "fine.txt", format="cvs")


def test_rows_that_stand_in_two_splits_are_told(tmp_path, loaded):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"{word},x\n" for word in "abcdefgh"))
    notes = loaded(None, splits=dict.fromkeys(("train", "validation", "test"), str(path))).notes
    assert notes[1] == "8 of 8 test rows also stand in the training split"


def test_builtins_are_found_by_file_name():
    assert builtins() == ["digits", "docstrings", "pydoc", "pytokens", "stdlib"]


def test_builtin_text_needs_no_heavy_library(tmp_path):
    code = (
        "import sys; from pathlib import Path; from llmos_cli.data.sources import load; "
        "from llmos_cli.options.data import DataOptions; "
        f"load(DataOptions(source='builtin:pydoc'), ('text',), cache=Path({str(tmp_path)!r})); "
        "print([name for name in ('datasets', 'transformers', 'sklearn', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_pattern_names_several_files(tmp_path, loaded):
    for i in range(3):
        (tmp_path / f"part-{i}.csv").write_text("text,label\n" + "".join(f"t{i}{j},{j % 2}\n" for j in range(10)))
    assert sum(len(split) for split in loaded(Path(tmp_path) / "part-*.csv").splits.values()) == 30
