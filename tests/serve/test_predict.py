"""Classifiers: /v1/predict for texts, words and images is what the task itself predicts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmos_cli import tasks
from llmos_cli.models.load import load
from llmos_cli.serve.inputs import check
from llmos_cli.serve.refusals import ApiError
from llmos_cli.serve.wire import Channel
from llmos_cli.serve.worker import Classifier
from tests.serve.conftest import Server, deployed, new_workspace, tiny_tokenizer

LABELS = {0: "cat", 1: "dog", 2: "log"}
ROWS: dict[str, list[Any]] = {
    "image-classification": [[[16 * (i + j) % 256 for i in range(8)] for j in range(8)], [[0] * 8] * 8],
    "text-classification": ["the cat sat", "the dog", ""],
    "token-classification": [["the", "cat"], ["the", "dog", "sat"]],
}


def save_classifier(directory: Path, task: str) -> None:
    import torch

    from llmos_cli.models.architectures import cnn, lstm

    torch.manual_seed(0)
    labels = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    if task == "image-classification":
        from llmos_cli.data.pixels import Pixels

        config = cnn.CnnConfig(image_size=8, num_channels=1, channels=[4, 4], **labels)
        cnn.CnnForImageClassification(config).save_pretrained(directory)
        Pixels(8, 1, (0.5,), (0.25,)).save_pretrained(directory)
        return
    config = lstm.LstmConfig(vocab_size=320, embedding_size=16, hidden_size=16, pad_token_id=0, **labels)
    suffix = "Sequence" if task == "text-classification" else "Token"
    getattr(lstm, f"LstmFor{suffix}Classification")(config).save_pretrained(directory)
    tiny_tokenizer(chat=False).save_pretrained(directory)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for task in ROWS:
        found[task] = tmp_path_factory.mktemp(task)
        save_classifier(found[task], task)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    task = "text-classification"
    ws = new_workspace(
        tmp_path_factory.mktemp("classifiers") / "sorts", lambda folder: save_classifier(folder, task), task
    )
    with deployed(ws, tmp_path_factory.mktemp("home")) as running:
        yield running


def expected(path: Path, task: str) -> list[dict[str, Any]]:
    config = json.loads((path / "config.json").read_text())
    judge = tasks.load(task)
    found = judge.predict(load(path), ROWS[task], config, judge.load_processor(path), batch_size=8)
    return [json.loads(json.dumps(asdict(one))) for one in found]


class Answers:
    """The gateway's end, listening."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.ours, self.channel = Channel(ours), Channel(theirs)

    def all(self) -> list[Any]:
        return list(self.ours.receive(wait=False))


@pytest.mark.parametrize("task", ROWS)
def test_requests_that_wait_are_one_batch_and_each_gets_its_own(checkpoints: dict[str, Path], task: str):
    answers, engine = Answers(), Classifier(tasks.load(task), load(checkpoints[task]), checkpoints[task])
    first, *rest = ROWS[task]
    engine.handle({"op": "predict", "id": 1, "rows": [first]}, answers.channel)
    engine.handle({"op": "predict", "id": 2, "rows": rest}, answers.channel)
    engine.handle({"op": "predict", "id": 3, "rows": rest}, answers.channel)
    engine.handle({"op": "cancel", "id": 3}, answers.channel)
    engine.step(answers.channel)
    got = answers.all()
    assert [answer["id"] for answer in got] == [1, 2]
    check_same([p for answer in got for p in answer["predictions"]], expected(checkpoints[task], task))


def test_a_request_that_cannot_be_answered_is_refused_and_the_others_are_answered(checkpoints: dict[str, Path]):
    task = "image-classification"
    answers, engine = Answers(), Classifier(tasks.load(task), load(checkpoints[task]), checkpoints[task])
    for number, row in enumerate([ROWS[task][0], [[1, 300]], ROWS[task][1]]):
        engine.handle({"op": "predict", "id": number, "rows": [row]}, answers.channel)
    engine.step(answers.channel)
    got = answers.all()
    assert [answer["op"] for answer in got] == ["predicted", "refused", "predicted"]
    assert got[1]["message"] == "an image is not rows of pixels with values 0 to 255"
    check_same([got[0]["predictions"][0], got[2]["predictions"][0]], expected(checkpoints[task], task))
    assert not engine.busy


def test_over_http_it_is_the_same(server: Server, checkpoints: dict[str, Path]):
    rows = ROWS["text-classification"]
    answer = httpx.post(f"{server.url}/v1/predict", json={"model": "sorts", "inputs": rows}, timeout=60)
    assert answer.status_code == 200, answer.text
    check_same(answer.json()["predictions"], expected(checkpoints["text-classification"], "text-classification"))


def check_same(got: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one["label"] == other["label"]
        assert list(one["tags"]) == other["tags"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert list(one["confidences"]) == pytest.approx(other["confidences"], abs=1e-5)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("image-classification", "text"),
        ("image-classification", []),
        ("image-classification", [[1, 2], [3]]),
        ("image-classification", [[1, 300]]),
        ("image-classification", [[0.5, 1]]),
        ("image-classification", [[True, 1]]),
        ("image-classification", [[[1, 2]]]),
        ("text-classification", 5),
        ("text-classification", ["a"]),
        ("text-classification", "half a \ud83d"),
        ("token-classification", "a text"),
        ("token-classification", []),
        ("token-classification", ["a", 3]),
        ("token-classification", ["a", "\ud83d"]),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_its_place(task: str, row: Any):
    with pytest.raises(ApiError, match=r"inputs\[1\] must be ") as refused:
        check([ROWS[task][0], row], task)
    assert (refused.value.status, refused.value.param) == (400, "inputs")


@pytest.mark.parametrize("inputs", [[], ["a", 5], "a", [None]])
def test_bad_inputs_are_400(server: Server, inputs: Any):
    answer = httpx.post(f"{server.url}/v1/predict", json={"inputs": inputs}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "inputs"


def test_a_classifier_does_not_complete(server: Server):
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, timeout=60)
    assert answer.status_code == 400
    assert "/v1/predict" in answer.json()["error"]["message"]
