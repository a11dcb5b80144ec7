"""`llmos generate`: continue a text with a language model's checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TextStreamer

from llmos_cli import device, tasks
from llmos_cli.core.view import Lines
from llmos_cli.data.tokenize import load_tokenizer
from llmos_cli.errors import UsageError
from llmos_cli.models.kernels.coded import load

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token; `top_p` keeps the likeliest tokens that together have that probability."""

    max_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class GenerateResult:
    """`text` goes on after `prompt`; `finish`: `stop` at the end of the document, `length` at max_tokens; seconds of generating."""

    checkpoint: str
    prompt: str
    text: str
    tokens: int
    prompt_tokens: int
    finish: str
    seconds: float

    def view(self) -> Lines:
        return Lines([self.prompt + self.text])


def generate(
    ws: Workspace, rev: str, prompt: str, sampling: Sampling, *, say: Callable[[str], None] | None = None
) -> GenerateResult:
    """Generate from `prompt`; `say` hears it, and the text as it comes. The same seed gives the same text on the same machine."""
    _check(sampling)
    checkpoint = ws.checkpoint(rev)
    _check_task(checkpoint)
    device.use_threads()
    tokenizer = load_tokenizer(checkpoint.path)
    on = device.pick()
    model = device.move(load(checkpoint.path, dtype=device.compute_dtype(on)), on)
    prompt_BL = device.move(_encoded(tokenizer, prompt), on)
    room = _room(model, prompt_BL.shape[1], sampling.max_tokens)
    torch.manual_seed(sampling.seed)
    if say:
        say(prompt)
    started = time.monotonic()
    made_L = _continue(model, tokenizer, prompt_BL, sampling, room, say)
    return GenerateResult(
        checkpoint=checkpoint.id,
        prompt=prompt,
        text=str(tokenizer.decode(made_L, skip_special_tokens=True)),
        tokens=len(made_L),
        prompt_tokens=prompt_BL.shape[1],
        finish="stop" if len(made_L) and int(made_L[-1]) in _ends(model) else "length",
        seconds=time.monotonic() - started,
    )


def _check(sampling: Sampling) -> None:
    if not 0 <= sampling.temperature < math.inf:
        raise UsageError(
            f"--temperature is {sampling.temperature}, and must be a number from 0 on.",
            hint="0 takes the likeliest token.",
        )
    if not 0 < sampling.top_p <= 1:
        raise UsageError(
            f"--top-p is {sampling.top_p}, and must be above 0 and at most 1.", hint="1 keeps every token."
        )
    if sampling.max_tokens < 1:
        raise UsageError(f"--max-tokens is {sampling.max_tokens}, and must be at least 1.", hint="128 when left out.")


def _check_task(checkpoint: Checkpoint) -> None:
    task = tasks.of_checkpoint(checkpoint.manifest, checkpoint.config_json())
    if task.name != "causal-lm":
        raise UsageError(
            f"{checkpoint.id[:12]} is made for {task.name} and generates no text.",
            hint="`llmos predict` runs a classifier on a file.",
        )


def _encoded(tokenizer: Any, prompt: str) -> torch.Tensor:
    """[1, L]; training separates documents by END, so a text begins after one."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    first = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    return torch.tensor([[token for token in first if token is not None] + ids])


def _room(model: PreTrainedModel, prompt: int, wanted: int) -> int:
    """How many tokens may follow: the model was never trained beyond its positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return wanted
    if prompt >= positions:
        raise UsageError(f"The prompt has {prompt} tokens, and the model {positions} positions.", hint="Shorten it.")
    return min(wanted, int(positions) - prompt)


def _continue(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt_BL: torch.Tensor,
    sampling: Sampling,
    room: int,
    say: Callable[[str], None] | None,
) -> torch.Tensor:
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    with torch.inference_mode():
        output_BL = model.generate(  # type: ignore[operator]
            prompt_BL,
            attention_mask=torch.ones_like(prompt_BL),
            do_sample=sampling.temperature > 0,
            max_new_tokens=room,
            streamer=_Spoken(tokenizer, say) if say else None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **chosen,
        )
    made_L: torch.Tensor = output_BL[0, prompt_BL.shape[1] :]
    return made_L


class _Spoken(TextStreamer):
    """Hands text on as soon as it can no longer change: a character may be spread over several tokens."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._say(text)


def _ends(model: PreTrainedModel) -> set[int]:
    end = model.generation_config.eos_token_id if model.generation_config else None
    return set(end if isinstance(end, list) else [end]) - {None}
