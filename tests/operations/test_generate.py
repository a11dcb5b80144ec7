"""`llmos generate`: text that goes on from a prompt, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.models.load import load
from llmos_cli.operations.config import resolve
from llmos_cli.operations.generate import GenerateResult, Sampling, generate
from llmos_cli.operations.train import train


@pytest.fixture
def trained(workspace: Workspace) -> Workspace:
    sets = ["train.max_steps=20", "train.optimizer=muon", "train.learning_rate=2e-2"]
    train(workspace, None, resolve(workspace, "train", sets=sets), emit=lambda event: None)
    return workspace


def test_text_goes_on_from_the_prompt(trained: Workspace) -> None:
    def made(**keys: float) -> GenerateResult:
        return generate(trained, "HEAD", "The for statement", Sampling(max_tokens=8, **keys))  # type: ignore[arg-type]

    first = made(seed=1)
    assert (first.prompt, first.checkpoint) == ("The for statement", trained.resolve())
    assert 1 <= first.tokens <= 8
    assert first.finish == ("length" if first.tokens == 8 else "stop")
    assert made(seed=1).text == first.text
    assert len({made(seed=seed).text for seed in range(4)}) > 1
    assert made(temperature=0, seed=1).text == made(temperature=0, seed=2).text

    heard: list[str] = []
    spoken = generate(trained, "HEAD", "The for statement", Sampling(max_tokens=8, seed=1), say=heard.append)
    assert "".join(heard) == "The for statement" + spoken.text
    assert spoken.text == first.text

    # Greedy tokens are the likeliest ones of the whole text so far, computed without a cache.
    from transformers import AutoTokenizer

    path = trained.checkpoint().path
    tokenizer, model = AutoTokenizer.from_pretrained(path), load(path)
    ids = [tokenizer.bos_token_id or tokenizer.eos_token_id, *tokenizer("The for statement")["input_ids"]]
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids[-8:], skip_special_tokens=True) == made(temperature=0).text

    for wrong, sentence in [
        (Sampling(temperature=-1), "--temperature is -1"),
        (Sampling(top_p=0), "--top-p is 0"),
        (Sampling(max_tokens=0), "--max-tokens is 0"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            generate(trained, "HEAD", "x", wrong)
    with pytest.raises(UsageError, match=r"The prompt has \d+ tokens, and the model 32 positions"):
        generate(trained, "HEAD", "x " * 100, Sampling())
