"""The training loop: exact resume, what it holds, when it stops, what it refuses."""

from __future__ import annotations

import hashlib
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmos_cli.errors import LlmosError, Terminated, UsageError
from llmos_cli.events import Event, Metric, Note, Progress
from llmos_cli.models.build import build
from llmos_cli.operations.fit import fit
from llmos_cli.operations.training import compiling
from llmos_cli.operations.training.holding import Held
from llmos_cli.operations.training.top import cached
from llmos_cli.options.model import ModelOptions
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks import load as task_called
from llmos_cli.tasks.base import Batch
from llmos_cli.tasks.scoring import evaluate

VOCAB = 40
FACTS = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "max_position_embeddings": 16}
TASK = task_called("causal-lm")


class Counting:
    """A split of `rows` sequences that count upwards by their own number: learnable in a few steps."""

    def __init__(self, rows: int = 64, length: int = 16) -> None:
        first = torch.arange(rows)[:, None]
        self.tokens = (first + (1 + first % 3) * torch.arange(length + 1)) % VOCAB

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        chosen = self.tokens[list(rows)]
        return {"input_ids": chosen[:, :-1], "labels": chosen[:, 1:].contiguous()}

    def bytes(self, rows: Sequence[int]) -> int:
        return 16 * len(rows)


def llama(seed: int = 0, **more: Any) -> nn.Module:
    widths: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    options = ModelOptions(arch="llama", num_attention_heads=2, **(widths | more))  # type: ignore[call-arg]
    return build(options, "causal-lm", FACTS, seed=seed)


def options(**keys: Any) -> TrainOptions:
    """In float32: what is compared is the loop, not how a machine rounds."""
    own = {"max_steps": 20, "batch_size": 4, "learning_rate": 1e-2, "compile": "off", "precision": "float32"}
    return TrainOptions(**own | keys)


def digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode() + tensor.numpy().tobytes())
    return whole.hexdigest()


def kill_at(step: int, number: signal.Signals) -> Callable[[Event], None]:
    """An `emit` that sends this process a signal when it hears of the validation after `step`."""

    def emit(event: Event) -> None:
        if isinstance(event, Metric) and event.step == step:
            os.kill(os.getpid(), number)

    return emit


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adafactor", "muon"])
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    how = options(optimizer=optimizer, eval_every=11, warmup=0.2, accumulation=2)
    # Dropout draws random numbers in every step: the generators must be restored too.
    straight = llama(attention_dropout=0.1)
    fit(straight, Counting(), Counting(8), TASK, how, seed=3)

    first = llama(attention_dropout=0.1)
    with pytest.raises(KeyboardInterrupt):
        fit(first, Counting(), Counting(8), TASK, how, seed=3, state=tmp_path, emit=kill_at(11, signal.SIGINT))
    resumed = llama(seed=1, attention_dropout=0.1)
    assert digest(resumed) != digest(first)
    fitted = fit(resumed, Counting(), Counting(8), TASK, how, seed=3, state=tmp_path, resume=True)

    assert fitted.steps == 20
    assert digest(resumed) == digest(straight)


def test_sigterm_saves_the_state_and_says_so(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        fit(llama(), Counting(), Counting(8), TASK, options(eval_every=5), seed=0, state=tmp_path, emit=kill_at(5, signal.SIGTERM))  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["good.pt", "training.pt"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_training_learns_and_keeps_the_best_weights() -> None:
    heard: list[Event] = []
    model = llama()
    fitted = fit(model, Counting(), Counting(8), TASK, options(max_steps=60), seed=0, emit=heard.append)

    measured = {
        event.step: event.value for event in heard if isinstance(event, Metric) and event.name == "bits_per_byte"
    }
    assert len(measured) == 10
    assert fitted.value == min(measured.values()) == measured[fitted.step]
    assert fitted.value < 0.5 * measured[6]
    last = [event for event in heard if isinstance(event, Progress)][-1]
    assert (last.step, last.total, last.rate_unit) == (60, 60, "tokens")
    assert last.rate > 0 and last.memory > 0 and last.values["loss"] < 2


def test_best_and_last_differ_where_validation_gets_worse() -> None:
    """What is learnt does not hold for the validation data, which counts downwards."""
    backwards = Counting(8)
    backwards.tokens = backwards.tokens.flip(1)
    best, last = llama(), llama()
    kept = fit(best, Counting(), backwards, TASK, options(max_steps=40), seed=0)
    left = fit(last, Counting(), backwards, TASK, options(max_steps=40, keep="last"), seed=0)
    assert kept.step < 40 == left.step
    assert digest(best) != digest(last)


def test_patience_stops_a_run_that_no_longer_improves() -> None:
    how = options(max_steps=200, learning_rate=1e-12, warmup=0, eval_every=2, patience=3)
    fitted = fit(llama(), Counting(), Counting(8), TASK, how, seed=0)
    assert fitted.stopped_early
    assert fitted.steps < 200


def test_pruned_weights_stay_zero_through_every_step() -> None:
    model = llama()
    name = "model.layers.0.mlp.up_proj.weight"
    mask = torch.rand(64, 32) > 0.5
    dense = model.get_parameter(name)[mask].clone()
    fit(model, Counting(), None, TASK, options(optimizer="muon"), seed=0, held=Held({name: mask}))
    assert not model.get_parameter(name)[~mask].any()
    assert not torch.equal(model.get_parameter(name)[mask], dense)


def test_only_what_is_trainable_changes() -> None:
    model = llama()
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit(
        model, Counting(), None, TASK, options(), seed=0, held=Held(trainable=lambda name: name.endswith("norm.weight"))
    )
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.endswith("norm.weight")}
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_distilling_draws_the_student_to_its_teacher() -> None:
    teacher = llama(seed=1)
    fit(teacher, Counting(), None, TASK, options(max_steps=60), seed=0)
    taught, untaught = digest(teacher), llama(seed=2)
    how = options(max_steps=60, teacher_weight=1.0, temperature=2.0)
    fit(untaught, Counting(), None, TASK, how, seed=0, teacher=teacher)
    batch = Counting().batch(range(16))
    with torch.no_grad():
        gap = (teacher(batch["input_ids"]).logits.softmax(-1) - untaught(batch["input_ids"]).logits.softmax(-1)).abs()
    assert gap.max(-1).values.mean() < 0.15
    assert digest(teacher) == taught


HIDDEN = {"hidden_weight": 0.5, "teacher_weight": 0.7, "temperature": 2.0}


def wider() -> nn.Module:
    return llama(seed=1, hidden_size=48, num_hidden_layers=4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_student_whose_hidden_states_are_taught_resumes_to_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    """The projections to the teacher's width are trained as well, so they are part of the state, not of the model."""
    how = options(optimizer=optimizer, eval_every=11, **HIDDEN)
    straight, cut, resumed = (llama(attention_dropout=0.1) for _ in range(3))
    fit(straight, Counting(), Counting(8), TASK, how, seed=3, teacher=wider())
    with pytest.raises(KeyboardInterrupt):
        emit = kill_at(11, signal.SIGINT)
        fit(cut, Counting(), Counting(8), TASK, how, seed=3, teacher=wider(), state=tmp_path, emit=emit)
    saved = torch.load(tmp_path / "training.pt", weights_only=True)["beside"]
    assert [tuple(projection.shape) for projection in saved.values()] == [(48, 32)] * 3
    fit(resumed, Counting(), Counting(8), TASK, how, seed=3, teacher=wider(), state=tmp_path, resume=True)
    assert digest(resumed) == digest(straight)
    assert straight.state_dict().keys() == llama().state_dict().keys()


def test_taught_hidden_states_come_closer_to_the_teachers() -> None:
    def gap(student: nn.Module, teacher: nn.Module) -> float:
        """Of the last states' similarities between positions, which no projection changes much."""
        batch = Counting().batch(range(8))["input_ids"]
        with torch.no_grad():
            ours, theirs = (
                nn.functional.normalize(m(batch, output_hidden_states=True).hidden_states[-1].flatten(0, 1), dim=-1)
                for m in (student, teacher)
            )
        return float((ours @ ours.T - theirs @ theirs.T).abs().mean())

    teacher = wider()
    fit(teacher, Counting(), None, TASK, options(max_steps=60), seed=0)
    plain, taught = llama(), llama()
    fit(plain, Counting(), None, TASK, options(max_steps=60), seed=0, teacher=teacher)
    fit(taught, Counting(), None, TASK, options(max_steps=60, hidden_weight=1.0), seed=0, teacher=teacher)
    assert gap(taught, teacher) < 0.7 * gap(plain, teacher)


def test_gradient_checkpointing_changes_no_taught_hidden_state() -> None:
    plain, checkpointed = llama(), llama()
    how = options(max_steps=3, **HIDDEN)
    fit(plain, Counting(), None, TASK, how, seed=0, teacher=wider())
    recomputing = how.model_copy(update={"gradient_checkpointing": True})
    fit(checkpointed, Counting(), None, TASK, recomputing, seed=0, teacher=wider())
    assert digest(plain) == digest(checkpointed)


@pytest.mark.slow
@pytest.mark.parametrize("how", [HIDDEN, {"teacher_weight": 0.7, "teacher_top": 5}])
def test_compiled_steps_learn_the_same_from_a_teacher(how: dict[str, Any]) -> None:
    eager, compiled = llama(), llama()
    told = options(max_steps=10, optimizer="sgd", **how)
    fit(eager, Counting(), None, TASK, told, seed=0, teacher=wider())
    with_code = told.model_copy(update={"compile": "on"})
    assert fit(compiled, Counting(), None, TASK, with_code, seed=0, teacher=wider()).compiled
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_what_a_teacher_said_before_teaches_as_it_does_now(tmp_path: Path) -> None:
    """The cached top of all classes trains as the logits do, to rounding; of five classes, as five computed on the way do."""
    teacher = wider()
    fit(teacher, Counting(), None, TASK, options(max_steps=30), seed=0)
    for k, live in ((VOCAB, {}), (5, {"teacher_top": 5})):
        told, kept = llama(), llama()
        how = options(teacher_weight=0.8, temperature=2.0, accumulation=2, optimizer="sgd")
        read = cached(
            tmp_path, k, Counting(), lambda: teacher, classes=VOCAB, k=k, temperature=2.0,
            autocast=nullcontext, emit=lambda event: None,
        )  # fmt: skip
        fit(told, Counting(), None, TASK, how.model_copy(update=live), seed=0, teacher=teacher)
        fit(kept, Counting(), None, TASK, how, seed=0, teacher=read)
        for one, other in zip(told.parameters(), kept.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_taught_student_is_closer_to_its_teacher_than_one_that_learnt_from_labels_alone() -> None:
    """Half of the text is noise, of which labels tell one draw and the teacher all chances."""

    class Noisy(Counting):
        def __init__(self, rows: int = 64, seed: int = 0) -> None:
            super().__init__(rows)
            random = torch.Generator().manual_seed(seed)
            noise = torch.randint(VOCAB, self.tokens.shape, generator=random)
            self.tokens = self.tokens.where(torch.rand(self.tokens.shape, generator=random) < 0.5, noise)

    teacher = wider()
    fit(teacher, Noisy(2048), None, TASK, options(max_steps=400, learning_rate=3e-3), seed=0)
    found = {}
    for name, how in {"labels": {}, "logits": {"teacher_weight": 1.0}, "top": {"teacher_weight": 1.0, "teacher_top": 8}, "hidden": {"teacher_weight": 1.0, "hidden_weight": 0.3}}.items():  # fmt: skip
        student = llama()
        of = None if name == "labels" else teacher
        fit(student, Noisy(64), None, TASK, options(max_steps=150, learning_rate=3e-3, **how), seed=0, teacher=of)
        outcome = evaluate(TASK, student, Noisy(64, seed=1), batch_size=16, teacher=teacher)
        found[name] = outcome.mean(outcome.extra["kl"])
    assert max(found["logits"], found["top"], found["hidden"]) < 0.5 * found["labels"], found


def test_accumulating_equals_one_larger_batch_though_samples_differ_in_length() -> None:
    class Ragged(Counting):
        def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
            batch = super().batch(rows)
            for labels_L, row in zip(batch["labels"], rows, strict=True):
                labels_L[1 + row % 15 :] = -100
            return batch

    whole, parts = llama(), llama()
    fit(whole, Ragged(), None, TASK, options(max_steps=3, batch_size=8, optimizer="sgd"), seed=0)
    fit(parts, Ragged(), None, TASK, options(max_steps=3, batch_size=2, accumulation=4, optimizer="sgd"), seed=0)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_memory_not_numbers() -> None:
    plain, checkpointed = llama(), llama()
    fit(plain, Counting(), None, TASK, options(max_steps=3), seed=0)
    fit(checkpointed, Counting(), None, TASK, options(max_steps=3, gradient_checkpointing=True), seed=0)
    assert digest(plain) == digest(checkpointed)


def test_a_loss_that_is_no_longer_finite_stops_the_run_with_good_weights_kept(tmp_path: Path) -> None:
    class Poisoned(nn.Module):
        """A model that gives infinite logits from its sixth forward pass on."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.passes, self.config = llama(), 0, None

        def forward(self, input_ids: torch.Tensor) -> Any:
            self.passes += 1
            found = self.inner(input_ids)
            found.logits = found.logits * (math.inf if self.passes > 5 else 1.0)
            return found

    model = Poisoned()
    with pytest.raises(LlmosError, match=r"The loss is no longer finite at step 6\.") as failed:
        fit(model, Counting(), None, TASK, options(), seed=0, state=tmp_path)
    assert "begins again" in failed.value.hint  # the state of step 5 holds the weights that fail
    assert not (tmp_path / "training.pt").exists()
    assert all(p.isfinite().all() for p in model.parameters())


def test_after_a_loss_that_is_no_longer_finite_the_last_good_state_is_gone_on_from(tmp_path: Path) -> None:
    """Good is what was saved before validation got worse, not what was saved last."""
    every = options(max_steps=8, eval_every=2)
    model = llama()
    with pytest.raises(KeyboardInterrupt):
        fit(model, Counting(), Counting(8), TASK, every, seed=0, state=tmp_path, emit=kill_at(4, signal.SIGINT))
    wild = options(max_steps=8, eval_every=1, learning_rate=1e30)
    with pytest.raises(LlmosError, match="no longer finite at step 6"):
        fit(model, Counting(), Counting(8), TASK, wild, seed=0, state=tmp_path, resume=True)
    saved = torch.load(tmp_path / "training.pt", weights_only=True)
    assert saved["position"]["step"] == 4
    assert max(float(tensor.abs().max()) for tensor in saved["model"].values()) < 100
    resumed, straight = llama(), llama()
    fit(resumed, Counting(), Counting(8), TASK, every, seed=0, state=tmp_path, resume=True)
    fit(straight, Counting(), Counting(8), TASK, every, seed=0)
    assert digest(resumed) == digest(straight)


def test_a_clock_budget_ends_in_time_and_the_rate_reaches_its_end() -> None:
    heard: list[Event] = []
    fitted = fit(llama(), Counting(), None, TASK, options(max_steps=None, max_seconds=2.0, schedule="linear"), seed=0, emit=heard.append)  # fmt: skip
    assert 2.0 <= fitted.seconds < 4.0
    assert not fitted.stopped_early
    rates = [event.values["learning_rate"] for event in heard if isinstance(event, Progress)]
    assert rates[-1] < 0.1 * 1e-2


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"max_steps": None}, "Nothing says when training ends."),
        ({"patience": 2}, "train.patience needs validation data."),
        ({"optimizer": "adamv"}, "there is no train method called 'adamv'"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        fit(llama(), Counting(), None, TASK, options(**keys), seed=0)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(UsageError, match="not one training sample"):
        fit(llama(), Counting(0), None, TASK, options(), seed=0)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As on a machine without a C++ compiler, and with nothing compiled before."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    with config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),), "fx_graph_cache": False}):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
def test_asking_to_compile_without_a_compiler_is_an_error() -> None:
    with pytest.raises(LlmosError, match=r"torch\.compile failed") as failed:
        fit(llama(), Counting(), None, TASK, options(compile="on"), seed=0)
    assert "train.compile=off" in failed.value.hint


@pytest.mark.usefixtures("no_compiler")
def test_where_compiling_fails_auto_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "COST_SECONDS", 0.0)  # it would not be tried for a run of a second
    heard: list[Event] = []
    tried, eager = llama(), llama()
    fitted = fit(tried, Counting(), None, TASK, options(compile="auto"), seed=0, emit=heard.append)
    fit(eager, Counting(), None, TASK, options(compile="off"), seed=0)
    assert not fitted.compiled
    warned = [event.message for event in heard if isinstance(event, Note)]
    assert len(warned) == 1 and "goes on without" in warned[0]
    assert digest(tried) == digest(eager)


@pytest.mark.slow
def test_compiled_steps_learn_the_same_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    how = options(compile="on", eval_every=5, max_steps=10)
    eager, straight, cut = llama(), llama(), llama()
    fit(eager, Counting(), Counting(8), TASK, options(eval_every=5, max_steps=10), seed=0)
    assert fit(straight, Counting(), Counting(8), TASK, how, seed=0).compiled
    with pytest.raises(KeyboardInterrupt):
        fit(cut, Counting(), Counting(8), TASK, how, seed=0, state=tmp_path, emit=kill_at(5, signal.SIGINT))
    fit(cut, Counting(), Counting(8), TASK, how, seed=0, state=tmp_path, resume=True)
    assert digest(cut) == digest(straight)
    for one, other in zip(eager.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-2)
