"""Chats behind a template, and keys before every route."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, BadRequestError, OpenAI

from llmos_cli.core.workspace import Workspace
from tests.serve.conftest import Server, deployed, new_workspace, save_llama

KEY = "sk-local-test"
MESSAGES = [{"role": "system", "content": "short"}, {"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return new_workspace(tmp_path_factory.mktemp("chats") / "chatty", partial(save_llama, chat=True))


@pytest.fixture(scope="module")
def server(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    keys = home / "keys.txt"
    keys.write_text(f"# ours\n{KEY}\n  second#key  \n")
    keys.chmod(0o600)
    with deployed(
        workspace, home, "--name", "chat", "--api-key-file", keys, env={"LLMOS_API_KEYS": "third"}
    ) as running:
        yield running


def client(server: Server, key: str = KEY) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_a_chat_continues_the_checkpoints_own_template(server: Server):
    answer = client(server).chat.completions.create(model="chat", messages=MESSAGES, max_tokens=9, temperature=0)
    text = "<system>short\n<user>the cat\n<assistant>"
    plain = client(server).completions.create(model="chat", prompt=text, max_tokens=9, temperature=0)
    assert answer.choices[0].message.content == plain.choices[0].text
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_chat_streams_role_first_then_text_then_its_end(server: Server):
    asked: dict[str, Any] = {"model": "chat", "messages": MESSAGES, "max_completion_tokens": 12, "seed": 3, "n": 2}
    whole = client(server).chat.completions.create(**asked)
    chunks = list(client(server).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for index in range(2):
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[0].delta.content == ""
        assert "".join(choice.delta.content for choice in own) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in own][-2:] == [None, "length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24


def test_a_chat_reports_logprobs_token_by_token(server: Server):
    asked: dict[str, Any] = {"model": "chat", "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    answer = client(server).chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in content)
    assert all(len(entry.top_logprobs) == 2 for entry in content)


def test_what_the_template_refuses_is_400(server: Server):
    with pytest.raises(BadRequestError, match="no such role"):
        client(server).chat.completions.create(model="chat", messages=[{"role": "fool", "content": "x"}])  # type: ignore[list-item, misc]


@pytest.mark.parametrize(("role", "told"), [("spin", "did not end within 2 seconds"), ("swell", "makes 20,000,")])
def test_a_template_that_never_ends_costs_one_answer(server: Server, role: str, told: str):
    with pytest.raises(BadRequestError, match=told):
        client(server).chat.completions.create(model="chat", messages=[{"role": role, "content": "x"}])  # type: ignore[list-item, misc]
    assert client(server).chat.completions.create(model="chat", messages=MESSAGES, max_tokens=1).choices


def test_tools_are_refused_rather_than_dropped(server: Server):
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(BadRequestError, match="tools are not supported"):
        client(server).chat.completions.create(model="chat", messages=MESSAGES, tools=tools)


@pytest.mark.parametrize("key", [KEY, "second#key", "third"])
def test_every_key_of_the_file_and_the_environment_opens(server: Server, key: str):
    assert client(server, key).models.list().data[0].id == "chat"


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1], "# ours"])
def test_no_other_key_does(server: Server, key: str):
    with pytest.raises(AuthenticationError):
        client(server, key).models.list()


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/docs", "/v1/completions", "/anything"])
def test_every_route_needs_a_key(server: Server, path: str):
    response = httpx.get(server.url + path)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_but_the_page_and_the_probes(server: Server, path: str):
    assert httpx.get(server.url + path).status_code == 200


def test_keys_do_not_show_in_the_run(server: Server):
    folder = server.workspace / "runs" / server.run
    assert not any(KEY in path.read_text() for path in folder.rglob("*") if path.is_file())


def test_a_message_in_parts_is_its_text(server: Server):
    def asked(content: Any) -> Any:
        return client(server).chat.completions.create(
            model="chat", messages=[{"role": "user", "content": content}], max_tokens=5, temperature=0
        )

    whole = asked("hello you")
    parts = asked([{"type": "text", "text": "hello "}, {"type": "text", "text": "you"}])
    assert parts.choices[0].message.content == whole.choices[0].message.content
    assert parts.usage.prompt_tokens == whole.usage.prompt_tokens
    for wrong in ([{"type": "image_url", "image_url": {"url": "x"}}], 3, None):
        with pytest.raises(BadRequestError, match="must be a text, or a list of parts of type text"):
            asked(wrong)
