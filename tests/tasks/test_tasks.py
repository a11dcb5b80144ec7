"""What every task promises: batches, scores, metrics and predictions that agree with each other."""

from __future__ import annotations

import json

import pytest
import torch

from llmos_cli import tasks
from llmos_cli.errors import UsageError
from llmos_cli.options.data import DataOptions
from llmos_cli.tasks import scoring


def test_tasks_are_found_by_file_name():
    assert tasks.names() == ["causal-lm", "image-classification", "text-classification", "token-classification"]
    with pytest.raises(UsageError, match="no task causal_lm") as raised:
        tasks.load("causal_lm")
    assert raised.value.hint == "Did you mean causal-lm?"


@pytest.mark.parametrize(
    "architecture, name",
    {
        "LlamaForCausalLM": "causal-lm",
        "BertForSequenceClassification": "text-classification",
        "LstmForTokenClassification": "token-classification",
        "ViTForImageClassification": "image-classification",
    }.items(),
)
def test_a_model_class_tells_its_task(architecture, name):
    assert tasks.of_architectures({"architectures": [architecture]}).name == name


def test_a_model_class_of_no_task_is_refused():
    with pytest.raises(UsageError, match="cannot tell the task"):
        tasks.of_architectures({"architectures": ["T5ForConditionalGeneration"]})


def test_batches_are_the_same_bits_again(case):
    _, prepared, _ = case
    split = prepared.splits["train"]
    first, again = split.batch([3, 1, 2], augment_seed=5), split.batch([3, 1, 2], augment_seed=5)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_preparing_again_gives_the_same_data(case, prepare):
    task, prepared, _ = case
    again = prepare(task.name)
    assert again.fingerprint == prepared.fingerprint and again.facts == prepared.facts
    assert json.loads(json.dumps(again.fingerprint)) == again.fingerprint


def test_scores_do_not_depend_on_the_batch(case):
    task, prepared, model = case
    split = prepared.splits["test"]
    one, many = (scoring.evaluate(task, model, split, batch_size=size) for size in (1, 5))
    torch.testing.assert_close(one.nll_N, many.nll_N, rtol=1e-4, atol=1e-5)
    assert torch.equal(one.sample_N, many.sample_N) and torch.equal(one.labels_N, many.labels_N)
    assert one.bytes == many.bytes == split.bytes(range(len(split)))


def test_evaluation_is_the_training_loss(case):
    task, prepared, model = case
    split = prepared.splits["test"]
    batch = split.batch(range(len(split)))
    with torch.no_grad():
        scored = task.scored(scoring.forward(model, batch), batch)
        loss = scoring.cross_entropy(scored)
    outcome = scoring.evaluate(task, model, split, batch_size=7)
    assert task.metrics(outcome, prepared.facts)["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert task.metric in task.metrics(outcome, prepared.facts)


def test_a_checkpoint_judges_data_by_its_own_processor(case, prepare, tmp_path):
    task, prepared, model = case
    model.config.save_pretrained(tmp_path)
    prepared.processor.save_pretrained(tmp_path)
    again = prepare(task.name, processor=tmp_path)
    batch, same = (p.splits["test"].batch(range(8)) for p in (prepared, again))
    assert all(torch.equal(batch[name], same[name]) for name in batch)
    assert {k: v for k, v in again.facts.items() if k != "id2label"} == {
        k: v for k, v in prepared.facts.items() if k != "id2label"
    }


def test_predictions_are_what_evaluation_counts(case, tmp_path):
    task, prepared, model = case
    model.config.save_pretrained(tmp_path)
    prepared.processor.save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    rows = _rows(task.name, prepared, tmp_path)
    predicted = task.predict(model, rows[0], facts, task.load_processor(tmp_path), batch_size=4)
    outcome = scoring.evaluate(task, model, prepared.splits["test"], batch_size=4)
    metrics = task.metrics(outcome, prepared.facts)
    if task.name == "causal-lm":
        assert sum(p.scores["bytes"] for p in predicted) == outcome.bytes
        assert sum(p.scores["tokens"] for p in predicted) == outcome.positions()
    elif task.name == "token-classification":
        pairs = [pair for p, tags in zip(predicted, rows[1], strict=True) for pair in zip(p.tags, tags, strict=True)]
        assert metrics["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    else:
        right = [p.label == label for p, label in zip(predicted, rows[1], strict=True)]
        assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))
        assert all(sum(p.probabilities.values()) == pytest.approx(1, abs=1e-5) for p in predicted)
        assert all(max(p.probabilities, key=p.probabilities.get) == p.label for p in predicted)


def _rows(name, prepared, tmp_path):
    """The inputs of the test split and what they truly are."""
    from llmos_cli.data.sources import load

    options = DataOptions(test_fraction=0.2, source=prepared.fingerprint["sources"][0]["source"])
    test = load(options, tasks.load(name).columns, cache=tmp_path / "cache").splits["test"]
    return [list(column) for column in test.columns.values()]


def test_inputs_that_do_not_fit_are_named(case):
    task, prepared, model = case
    facts = model.config.to_dict()
    with pytest.raises(UsageError):
        task.predict(model, [{"wrong": 1}], facts, prepared.processor, batch_size=4)
    assert task.predict(model, [], facts, prepared.processor, batch_size=4) == []


def test_a_label_unseen_in_training_is_an_error(prepare, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(40)))
    (tmp_path / "test.csv").write_text("text,label\nx,a\ny,c\n")
    splits = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    with pytest.raises(UsageError, match="the test split has a label that training did not: c"):
        prepare("text-classification", source=None, splits=splits)


def test_one_class_is_not_enough(prepare, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"t{i},only\n" for i in range(40)))
    with pytest.raises(UsageError, match="only the label only"):
        prepare("text-classification", source=str(tmp_path / "one.csv"))


def test_words_without_tags_are_an_error(prepare, tmp_path):
    rows = [{"tokens": ["a", f"b{i}"], "tags": ["X", "Y"][: 1 + i % 2]} for i in range(40)]
    (tmp_path / "torn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="2 words and 1 tags"):
        prepare("token-classification", source=str(tmp_path / "torn.jsonl"))


def test_a_sequence_longer_than_the_model_is_an_error(prepare, tmp_path):
    prepared = prepare("text-classification")
    prepared.processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"max_position_embeddings": 32, "id2label": {"0": "ham", "1": "spam"}})
    )
    with pytest.raises(UsageError, match="sequence_length is 64, but the model has 32 positions"):
        prepare("text-classification", processor=tmp_path, sequence_length=64)


def test_long_texts_are_cut_and_told(prepare):
    notes = prepare("text-classification", sequence_length=8).notes
    assert any("train texts are longer than 8 tokens and were cut" in note for note in notes)


def test_new_labels_make_a_new_head_only_when_asked(prepare, tmp_path, sources):
    prepared = prepare("text-classification")
    prepared.processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "good", "1": "bad"}}))
    with pytest.raises(UsageError, match="a label that training did not: ham, spam"):
        prepare("text-classification", processor=tmp_path)
    assert set(prepare("text-classification", processor=tmp_path, relabel=True).facts["id2label"].values()) == {
        "ham",
        "spam",
    }


def test_numeric_labels_are_ordered_by_value(prepare):
    assert list(prepare("image-classification").facts["id2label"].values()) == [str(i) for i in range(10)]
