"""The HTTP interface of a language model, as its clients see it: the openai client, and plain requests for what it never sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from llmos_cli.core.workspace import Workspace
from tests.serve.conftest import SERVED, Server, deployed, eventually, new_workspace, save_llama

LIMITS = (
    "-s",
    "deploy.precision=float32",
    "-s",
    "deploy.slots=4",
    "-s",
    "deploy.queue=2",
    "-s",
    "deploy.max_request_bytes=20000",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return new_workspace(tmp_path_factory.mktemp("served") / "tiny", save_llama)


@pytest.fixture(scope="module")
def server(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with deployed(workspace, tmp_path_factory.mktemp("home"), *LIMITS) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def complete(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json={"prompt": "the cat", "temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="module")
def reference(workspace: Workspace) -> Any:
    """The served model in this process, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = workspace.checkpoint("HEAD").path
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def test_the_openai_client_gets_what_transformers_generates(client: OpenAI, reference: Any):
    model, tokenizer = reference
    inputs = tokenizer("the cat", return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :]
    answer = client.completions.create(model="tiny", prompt="the cat", max_tokens=12, temperature=0)
    assert answer.choices[0].text == tokenizer.decode(made)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 2,
        "completion_tokens": 12,
        "total_tokens": 14,
    }


def test_a_stream_says_the_same_as_the_whole(client: OpenAI):
    whole = client.completions.create(model="tiny", prompt="the dog", max_tokens=40, seed=5)
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model="tiny", prompt="the dog", max_tokens=40, seed=5, stream=True, stream_options=options
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 40


def test_a_stream_ends_with_done(http: httpx.Client):
    body = {"prompt": "the", "max_tokens": 3, "stream": True}
    response = http.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


def test_n_choices_of_a_seeded_request_differ_and_come_back(http: httpx.Client):
    first, again = (complete(http, n=3, seed=1, temperature=1, max_tokens=8) for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice["text"] for choice in again["choices"]]


def test_several_prompts_of_text_or_tokens_are_one_request(http: httpx.Client, reference: Any):
    _, tokenizer = reference
    texts = ["the cat", "the dog sat"]
    by_text = complete(http, prompt=texts, max_tokens=5)
    by_tokens = complete(http, prompt=[tokenizer(text).input_ids for text in texts], max_tokens=5)
    alone = [complete(http, prompt=text, max_tokens=5)["choices"][0]["text"] for text in texts]
    assert [choice["text"] for choice in by_text["choices"]] == alone
    assert [choice["text"] for choice in by_tokens["choices"]] == alone


def test_a_stop_string_ends_the_text_before_it(http: httpx.Client):
    whole = complete(http, prompt="the cat sat", max_tokens=60)["choices"][0]["text"]
    stop = whole[20:24]
    for stream in (False, True):
        body = {"prompt": "the cat sat", "temperature": 0, "max_tokens": 60, "stop": [stop, "never"], "stream": stream}
        response = http.post("/v1/completions", json=body)
        chunks = list(events(response)) if stream else [response.json()]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole[: whole.index(stop)]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_logprobs_with_echo_are_what_lm_eval_reads(http: httpx.Client, reference: Any):
    """`max_tokens=1, logprobs=1, echo=true` over token ids: the sum over the continuation is the model's."""
    import torch

    model, tokenizer = reference
    tokens = tokenizer("the cat sat on the mat").input_ids
    body = {"prompt": [tokens, tokens[:3]], "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    answer = complete(http, **body)
    with torch.inference_mode():
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [float(logprobs[place, token]) for place, token in enumerate(tokens[1:])]
    for choice, length in zip(answer["choices"], (len(tokens), 3), strict=True):
        said = choice["logprobs"]
        assert len(said["tokens"]) == len(said["token_logprobs"]) == len(said["top_logprobs"]) == length + 1
        assert said["token_logprobs"][0] is None
        assert said["token_logprobs"][1:length] == pytest.approx(expected[: length - 1], abs=1e-4)
        assert max(said["top_logprobs"][1].values()) == pytest.approx(float(logprobs[0].max()), abs=1e-4)
        assert choice["text"].startswith("the cat")


def test_zero_tokens_with_echo_score_the_prompt_alone(http: httpx.Client):
    choice = complete(http, prompt="the cat sat", max_tokens=0, logprobs=0, echo=True)["choices"][0]
    assert choice["text"] == "the cat sat"
    assert choice["logprobs"]["text_offset"] == [0, 3, 7]


def test_echo_without_logprobs_repeats_the_prompt(http: httpx.Client):
    plain = complete(http, max_tokens=4)["choices"][0]["text"]
    assert complete(http, max_tokens=4, echo=True)["choices"][0]["text"] == "the cat" + plain


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({}, 400, "prompt", "missing"),
        ({"prompt": 5}, 400, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, 400, "prompt", "invalid_value"),
        ({"prompt": "\ud800"}, 400, "prompt", "invalid_value"),
        ({"prompt": ["a", "\ud800"]}, 400, "prompt", "invalid_value"),
        ({"prompt": ""}, 400, "prompt", "empty_prompt"),
        ({"prompt": []}, 400, "prompt", "empty_prompt"),
        ({"prompt": [100_000]}, 400, "prompt", None),
        ({"prompt": "a", "temperature": 3}, 400, "temperature", "invalid_value"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p", "invalid_value"),
        ({"prompt": "a", "n": 0}, 400, "n", "invalid_value"),
        ({"prompt": "a", "n": 100}, 400, "n", None),
        ({"prompt": "a", "logprobs": 99}, 400, "logprobs", "invalid_value"),
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens", "invalid_value"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias", "invalid_value"),
        ({"prompt": "a", "best_of": 4}, 400, None, "invalid_value"),
        ({"prompt": "a", "max_tokens": SERVED}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": [1] * (SERVED + 1)}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": "a", "model": "other"}, 404, "model", "model_not_found"),
    ],
)
def test_a_bad_request_is_refused_in_the_apis_own_shape(
    http: httpx.Client, body: dict[str, Any], status: int, param: str | None, code: str | None
):
    response = http.post("/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].endswith(".")


@pytest.mark.parametrize("text", ["{", "", "[]", '"text"'])
def test_what_is_no_json_object_is_400(http: httpx.Client, text: str):
    response = http.post("/v1/completions", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_fields_are_ignored(http: httpx.Client):
    assert complete(http, max_tokens=1, user="me", invented=3)["choices"]


def test_the_prompt_that_fills_the_context_leaves_no_room(http: httpx.Client):
    full = http.post("/v1/completions", json={"prompt": [1] * SERVED})
    assert full.status_code == 400 and full.json()["error"]["code"] == "context_length_exceeded"
    assert complete(http, prompt=[1] * (SERVED - 1))["usage"]["completion_tokens"] == 1


def test_a_body_that_is_too_large_is_413_announced_or_not(http: httpx.Client):
    body = json.dumps({"prompt": "a" * 30_000}).encode()
    announced = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    chunked = http.post("/v1/completions", content=iter([body]), headers={"Content-Type": "application/json"})
    for response in (announced, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


def test_more_than_slots_and_queue_is_429_with_retry_after(http: httpx.Client, server: Server):
    body = {"prompt": "a", "n": 6, "max_tokens": 2000, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        said = events(response)  # kept: dropping it would close the connection
        next(said)
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, timeout=60)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(http: httpx.Client, server: Server, stream: bool):
    before = aborted(http)
    body = {"prompt": "a", "max_tokens": 2000, "stream": stream}
    if stream:
        with http.stream("POST", "/v1/completions", json=body) as response:
            next(events(response))
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.3)
    assert eventually(lambda: aborted(http) == before + 1)
    assert eventually(lambda: metric(http, "num_requests_running") == 0)


def aborted(http: httpx.Client) -> float:
    return metric(http, "request_success_total", 'finished_reason="abort",')


def metric(http: httpx.Client, name: str, label: str = "") -> float:
    start = f'llmos:{name}{{{label}model_name="tiny"}} '
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(start)]
    return float(lines[0].removeprefix(start)) if lines else 0.0


def test_metrics_count_tokens_and_times(http: httpx.Client):
    before = {name: metric(http, name) for name in ("prompt_tokens_total", "generation_tokens_total")}
    complete(http, max_tokens=10)
    assert metric(http, "prompt_tokens_total") - before["prompt_tokens_total"] == 2
    assert metric(http, "generation_tokens_total") - before["generation_tokens_total"] == 10
    assert metric(http, "time_to_first_token_seconds_count") > 0
    assert metric(http, "inter_token_latency_seconds_count") > 0
    assert metric(http, "num_requests_waiting") == 0


def test_models_are_listed_with_their_checkpoint(client: OpenAI, workspace: Workspace):
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert model.root == workspace.resolve("HEAD")
    assert client.models.retrieve("tiny").max_model_len == SERVED


def test_the_checkpoints_id_names_the_model_too(http: httpx.Client, workspace: Workspace):
    assert complete(http, model=workspace.resolve("HEAD"), max_tokens=1)["model"] == "tiny"


def test_health_and_readiness_and_the_page(http: httpx.Client):
    assert http.get("/health").json() == {"status": "ready"}
    assert http.get("/ready").status_code == 200
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "/v1/completions".lstrip("/") in page.text


def test_an_unknown_route_is_404_in_the_same_shape(http: httpx.Client):
    response = http.get("/v2/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "There is no GET /v2/nothing here."


def test_chat_without_a_template_says_so(http: httpx.Client):
    response = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_chat_template"


def test_predict_is_not_for_language_models(http: httpx.Client):
    response = http.post("/v1/predict", json={"inputs": ["a"]})
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


def test_requests_that_come_together_are_answered_as_if_alone(http: httpx.Client, server: Server):
    prompts = ["the cat", "the dog sat on", "the log", "a"]
    alone = [complete(http, prompt=prompt, max_tokens=30)["choices"][0]["text"] for prompt in prompts]
    together: dict[str, str] = {}

    def ask(prompt: str) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as own:
            together[prompt] = complete(own, prompt=prompt, max_tokens=30)["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[prompt] for prompt in prompts] == alone


def test_the_run_keeps_a_log(server: Server):
    log = (Path(server.workspace) / "runs" / server.run / "log.txt").read_text()
    assert "decoding 4 streams" in log
    assert f"ready at {server.url}" in log
    assert "had no effect" not in log
