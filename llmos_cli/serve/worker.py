"""The engine's process: loads a checkpoint, decodes or classifies what the gateway sends, until the gateway goes.

Started as `python -m llmos_cli.serve.worker FD`, FD being its end of a socket pair. In a process of its own because a
thread beside an HTTP server shares its interpreter lock: measured, half the tokens per second.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llmos_cli import device, tasks
from llmos_cli.core import manifest
from llmos_cli.errors import LlmosError
from llmos_cli.models.kernels import coded
from llmos_cli.models.load import load
from llmos_cli.serve import backend
from llmos_cli.serve.engine import Engine, Event, Finished, Request, Scored, Token
from llmos_cli.serve.rendering import ChatTemplate, Unrenderable
from llmos_cli.serve.sampling import Drawn, Sampling
from llmos_cli.serve.wire import Channel, Message
from llmos_cli.tasks.base import Task

BATCH = 64
"""Rows classified in one forward."""


def main(descriptor: int) -> None:
    # The gateway decides when to end; closing its end of the socket is the sign.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    order = next(channel.receive(wait=True), None)
    if order is None:
        return
    try:
        device.use_threads(order["threads"])
        worker = loaded(order, channel)
    except LlmosError as error:
        channel.send({"op": "failed", "message": error.message, "hint": error.hint, "exit_code": error.exit_code})
        return
    channel.send({"op": "ready", **worker.facts})
    while channel.open:
        for message in channel.receive(wait=not worker.busy):
            worker.handle(message, channel)
        worker.step(channel)


def loaded(order: Message, channel: Channel) -> LanguageModel | Classifier:
    path = Path(order["path"])
    task = task_of(path)
    return language_model(path, order, channel) if task.name == "causal-lm" else classifier(path, task, order)


def loading(order: Message) -> Callable[..., PreTrainedModel]:
    """Quantized layers as codes, or dequantized."""
    return load if order["kernels"] == "off" else coded.load


def task_of(path: Path) -> Task:
    if (path / manifest.NAME).is_file():
        return tasks.of_checkpoint(manifest.read(path), config_of(path))
    return tasks.of_architectures(config_of(path))


def config_of(path: Path) -> Message:
    values: Message = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return values


def language_model(path: Path, order: Message, channel: Channel) -> LanguageModel:
    chosen = device.pick()
    dtype = device.asked_dtype(order["precision"], chosen)
    model = loading(order)(path, dtype=dtype, device=chosen)
    if order["head"] != "keep" and not coded.quantize_head(model, order["head"]):
        channel.send(
            {"op": "note", "message": "deploy.head changes nothing: the head is stored as codes, or there is none"}
        )
    built = backend.build(
        model, slots=order["slots"], context=order["context"], warm=order["warm"], kv_cache=order["kv_cache"]
    )
    for note in (built.note, *built.layers):
        channel.send({"op": "note", "message": note})
    return LanguageModel(built, path)


class LanguageModel:
    """Decoding: requests in, a frame of events out after every step."""

    def __init__(self, built: backend.Built, path: Path) -> None:
        ends = end_tokens(path)
        self.engine = Engine(built.decoder, end_tokens=ends)
        self.built = built
        self.template = ChatTemplate(path)
        self.told_busy = False
        self.facts = {
            "kind": "language-model",
            "task": "causal-lm",
            "context": built.decoder.context,
            "vocabulary": built.decoder.vocabulary,
            "decoder": built.name,
            "begin": next(iter([*declared(path, "bos_token_id"), *ends]), None),
        }

    @property
    def busy(self) -> bool:
        return self.engine.busy

    def handle(self, message: Message, channel: Channel) -> None:
        match message["op"]:
            case "generate":
                self.engine.submit(request_of(message))
            case "cancel":
                self.engine.cancel(message["id"])
            case "render":
                self.render(message, channel)

    def render(self, message: Message, channel: Channel) -> None:
        try:
            tokens = self.template.tokens(message["messages"])
        except Unrenderable as error:
            channel.send({"op": "refused", "id": message["id"], "message": str(error)})
            return
        channel.send({"op": "rendered", "id": message["id"], "tokens": tokens})

    def step(self, channel: Channel) -> None:
        for note in self.built.news():
            channel.send({"op": "note", "message": note})
        if self.engine.busy or self.told_busy:  # once more when it falls idle: a cancelled request makes no event
            events = self.engine.step()
            self.told_busy = self.engine.busy
            channel.send({"op": "events", "events": [packed(event) for event in events], **self.load()})

    def load(self) -> Message:
        return {
            "running": len(self.engine.rows),
            "waiting": len(self.engine.queue),
            "usage": self.engine.cache_usage,
        }


def request_of(message: Message) -> Request:
    return Request(
        message["id"],
        tuple(message["tokens"]),
        message["max_tokens"],
        Sampling(**message["sampling"]),
        message["echo"],
    )


def packed(event: Event) -> list[Any]:
    match event:
        case Token():
            return ["token", event.id, *unwrapped(event.drawn)]
        case Scored():
            return ["scored", event.id, [unwrapped(drawn) for drawn in event.tokens]]
        case Finished():
            return ["finished", event.id, event.reason]


def unwrapped(drawn: Drawn) -> list[Any]:
    return [drawn.token, drawn.logprob, drawn.top]


def end_tokens(path: Path) -> list[int]:
    """Tokens that end a text."""
    return declared(path, "eos_token_id")


def declared(path: Path, key: str) -> list[int]:
    """A token, or several, that generation_config.json or config.json names."""
    found: list[int] = []
    for file in (path / "generation_config.json", path / "config.json"):
        value = json.loads(file.read_text()).get(key) if file.is_file() else None
        found += value if isinstance(value, list) else [] if value is None else [value]
    return list(dict.fromkeys(found))


def classifier(path: Path, task: Task, order: Message) -> Classifier:
    return Classifier(task, loading(order)(path, device=device.pick()), path)


class Classifier:
    """Classifying: the rows of all requests that wait are one batch."""

    def __init__(self, task: Task, model: Any, path: Path) -> None:
        self.task, self.model = task, model
        self.config = config_of(path)
        self.processor = task.load_processor(path)
        self.waiting: list[Message] = []
        self.facts = {"kind": "classifier", "task": task.name}

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def handle(self, message: Message, channel: Channel) -> None:
        if message["op"] == "predict":
            self.waiting.append(message)
        elif message["op"] == "cancel":
            self.waiting = [other for other in self.waiting if other["id"] != message["id"]]

    def step(self, channel: Channel) -> None:
        messages, self.waiting = self.waiting, []
        try:
            self.answer(messages, channel)
        except LlmosError:  # one request's rows must not cost the others their answers: whose they are shows one by one
            for message in messages:
                self.answer_or_refuse(message, channel)

    def answer_or_refuse(self, message: Message, channel: Channel) -> None:
        try:
            self.answer([message], channel)
        except LlmosError as error:
            channel.send({"op": "refused", "id": message["id"], "message": error.message})

    def answer(self, messages: list[Message], channel: Channel) -> None:
        rows = [row for message in messages for row in message["rows"]]
        if not rows:
            return
        found = self.task.predict(self.model, rows, self.config, self.processor, batch_size=BATCH)
        predictions = iter([asdict(one) for one in found])
        for message in messages:
            own = list(islice(predictions, len(message["rows"])))
            channel.send({"op": "predicted", "id": message["id"], "predictions": own})


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking torch apart piece by piece costs seconds, and a compiling thread would be waited for
