"""`llmos train` in a workspace: from scratch, from a revision, resumed, planned, several at once."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from llmos_cli.core.workspace import Workspace
from llmos_cli.device import compute_dtype
from llmos_cli.errors import Interrupted, LlmosError, NotFound, Terminated, UsageError
from llmos_cli.events import Event, Metric, Note, Progress, Resumed, Saved
from llmos_cli.models.headers import files
from llmos_cli.models.load import load
from llmos_cli.models.save import save
from llmos_cli.operations.config import resolve
from llmos_cli.operations.show import show
from llmos_cli.operations.status import status
from llmos_cli.operations.tag import tag
from llmos_cli.operations.train import TrainResult, measure, resume, train
from llmos_cli.operations.training.divergence import Divergence
from llmos_cli.operations.training.plan import plan
from llmos_cli.operations.training.several import several
from llmos_cli.operations.training.start import start
from llmos_cli.tasks import load as task_called

if TYPE_CHECKING:
    from tests.conftest import Llmos


def trained(
    ws: Workspace, rev: str | None = None, *sets: str, emit: Any = lambda event: None, **more: Any
) -> TrainResult:
    return train(ws, rev, resolve(ws, "train", sets=sets), emit=emit, **more)


def killed(ws: Workspace, number: signal.Signals, *sets: str, rev: str | None = None) -> str:
    """Train until the validation after step 2 and send this process a signal; the run's id."""

    def emit(event: Event) -> None:
        if isinstance(event, Metric) and event.step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises((Interrupted, Terminated)):
        trained(ws, rev, *sets, emit=emit)
    return ws.runs.list()[-1].id


def weights(ws: Workspace, rev: str = "HEAD") -> dict[str, torch.Tensor]:
    return load(ws.checkpoint(rev).path).state_dict()


def hashes(ws: Workspace, rev: str = "HEAD") -> dict[str, str]:
    tree = ws.checkpoint(rev).manifest.tree
    return {name: entry.sha256 for name, entry in tree.items() if name.endswith(".safetensors")}


def test_a_checkpoint_from_scratch_says_how_it_was_made(workspace: Workspace) -> None:
    result = trained(workspace)
    checkpoint = workspace.checkpoint()
    made = checkpoint.manifest.made
    assert (checkpoint.id, made.operation, made.parents, made.seed) == (result.checkpoint, "train", (), 0)
    assert made.config["data"]["task"] == "causal-lm"
    assert made.config["model"]["hidden_size"] == 32
    assert made.environment["precision"] == str(compute_dtype(torch.device("cpu"))).removeprefix("torch.")
    assert made.environment["packages"]["torch"] == torch.__version__
    assert made.data["tokenizer"]
    assert (result.steps, result.rate_unit, result.branch) == (4, "tokens", "main")


def test_the_numbers_are_of_the_file_read_back_not_of_the_weights_in_memory(workspace: Workspace) -> None:
    heard: list[Event] = []
    result = trained(workspace, emit=heard.append)
    checkpoint = workspace.checkpoint()
    stored = load(checkpoint.path)
    assert json.loads((checkpoint.path / "config.json").read_text())["dtype"] == "bfloat16"
    config = resolve(workspace, "train").config
    prepared = start(workspace, checkpoint, config).prepared
    again = measure(
        task_called("causal-lm"), stored, prepared.splits["test"], prepared.facts, emit=heard.append, stage=""
    )
    assert again == result.metrics["test"]
    told = workspace.metrics(checkpoint.id)
    assert told["bits_per_byte", "test"].value == again["bits_per_byte"]
    assert told["bits_per_byte", "test"].checkpoint == checkpoint.id
    assert told["bits_per_byte", "test"].samples == checkpoint.manifest.made.data["splits"]["test"]["sha256"]


def test_the_same_config_and_seed_give_the_same_files(workspace: Workspace) -> None:
    trained(workspace)
    first = hashes(workspace)
    trained(workspace)
    assert hashes(workspace) == first
    trained(workspace, None, "seed=1")
    assert hashes(workspace) != first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_is_resumed_to_the_same_files(workspace: Workspace, number: signal.Signals) -> None:
    killed(workspace, number, "train.max_steps=6")
    assert workspace.head().checkpoint is None
    resume(workspace, None, emit=lambda event: None)
    resumed = hashes(workspace)
    trained(workspace, None, "train.max_steps=6")
    assert hashes(workspace) == resumed


def test_resuming_keeps_to_the_config_of_the_run_whatever_the_files_say_now(workspace: Workspace) -> None:
    run = killed(workspace, signal.SIGINT, "train.max_steps=6")
    (workspace.configs / "train.yaml").write_text("train: {max_steps: 99, batch_size: 2}\nmodel: {arch: gpt2}\n")
    result = resume(workspace, run, emit=lambda event: None)
    assert result.steps == 6
    assert not list((workspace.root / "runs" / run).glob("state/*"))


def test_there_is_nothing_to_resume_after_a_run_that_ended_well(workspace: Workspace) -> None:
    result = trained(workspace)
    with pytest.raises(NotFound, match="no training run on main was interrupted"):
        resume(workspace, None, emit=lambda event: None)
    with pytest.raises(UsageError, match="is done"):
        resume(workspace, result.run, emit=lambda event: None)
    with pytest.raises(UsageError, match="is done"):
        resumed(workspace, result.run, "train.learning_rate=1e-3")


def test_what_was_saved_already_is_not_optimised_in_another_way(workspace: Workspace) -> None:
    def cut_off(event: Event) -> None:
        if isinstance(event, Saved):
            raise Terminated("cut off", hint="")

    with pytest.raises(Terminated):
        trained(workspace, None, "train.max_steps=2", emit=cut_off)
    (run,), made = workspace.runs.list(), workspace.head().checkpoint
    with pytest.raises(UsageError, match="has saved") as refused:
        resumed(workspace, None, "train.learning_rate=1e-3")
    assert refused.value.hint and f"--resume --run {run.id}`" in refused.value.hint
    assert workspace.runs.list() == [run] and run.status == "terminated"
    assert resumed(workspace, run.id).checkpoint == made == workspace.head().checkpoint
    assert workspace.runs.find(run.id).status == "done" and workspace.metrics(made or "")


def diverged(ws: Workspace, *sets: str) -> str:
    """Train at a rate that no weight survives; the id of the run that its loss stopped."""
    with pytest.raises(LlmosError, match="no longer finite") as stopped:
        trained(ws, None, "train.max_steps=6", "train.eval_every=1", "train.learning_rate=1e30", *sets)
    assert "`llmos train --resume -s train.learning_rate=LOWER`" in stopped.value.hint
    return ws.runs.list()[-1].id


def resumed(ws: Workspace, run: str | None, *sets: str, emit: Any = lambda event: None) -> TrainResult:
    return resume(ws, run, sets=sets, emit=emit)


@pytest.mark.parametrize("template", ["image-classification", "text-classification", "token-classification"])
def test_a_classifier_that_diverged_says_so(
    template: str, new_workspace: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """It is validated after the step that ran away, with a NaN for every class."""
    ws = new_workspace(tmp_path / "w", template)
    monkeypatch.chdir(ws.root)
    diverged(ws, "train.optimizer=sgd", "train.clip_norm=null")
    assert ws.head().checkpoint is None


def test_a_run_that_diverged_goes_on_from_its_last_good_state_at_another_rate(workspace: Workspace) -> None:
    cut = ("train.max_steps=6", "train.eval_every=1")
    run = killed(workspace, signal.SIGINT, *cut)
    with pytest.raises(LlmosError, match="no longer finite"):
        resumed(workspace, run, "train.learning_rate=1e30")
    assert status(workspace).diverged == Divergence(step=4, good=2)

    heard: list[Event] = []
    result = resumed(workspace, None, "train.learning_rate=1e-3", "train.clip_norm=0.5", emit=heard.append)
    assert result.steps == 6 and math.isfinite(result.metrics["test"]["loss"])
    told = "from step 2 on: train.clip_norm 0.5 (was 1.0), train.learning_rate 0.001 (was 1e+30)"
    assert told in [event.told for event in heard if isinstance(event, Resumed)]
    assert told in (workspace.root / "runs" / run / "log.txt").read_text()
    after = hashes(workspace)

    again = killed(workspace, signal.SIGINT, *cut)
    resumed(workspace, again, "train.learning_rate=1e-3", "train.clip_norm=0.5")
    assert hashes(workspace) == after


def test_a_run_without_a_good_state_begins_again_at_another_rate(workspace: Workspace) -> None:
    diverged(workspace)
    assert status(workspace).diverged == Divergence(step=2, good=0)
    resumed(workspace, None, "train.learning_rate=1e-3")
    after = hashes(workspace)
    trained(workspace, None, "train.max_steps=6", "train.eval_every=1", "train.learning_rate=1e-3")
    assert hashes(workspace) == after


def test_a_resumed_run_tells_the_settings_it_ended_with_and_those_it_had(workspace: Workspace) -> None:
    run = diverged(workspace)
    resumed(workspace, None, "train.learning_rate=1e-3")
    made = show(workspace, "HEAD")
    assert made.config["train"]["learning_rate"] == 1e-3
    assert made.environment["resumed"] == "from step 0 on: train.learning_rate 0.001 (was 1e+30)"
    assert yaml.safe_load((workspace.root / "runs" / run / "config.yaml").read_text())["train"]["learning_rate"] == 1e-3


def test_a_diverged_run_is_not_resumed_to_the_same_end(workspace: Workspace, llmos: Llmos) -> None:
    run = diverged(workspace)
    refused = llmos("train", "--resume")
    assert refused.code == 2 and f"run {run} ended at step 2" in refused.err
    assert "-s train.learning_rate=LOWER" in refused.err
    assert "interrupted: " not in llmos("status").out
    assert f"diverged: {run} at step 2, `llmos train --resume -s train.learning_rate=LOWER`" in llmos("status").out


@pytest.mark.parametrize(
    "setting",
    ["model.hidden_size=64", "data.max_samples=8", "seed=3", "train.batch_size=2", "train.optimizer=sgd"],
)
def test_what_a_run_learns_and_from_what_stays_as_it_was(workspace: Workspace, setting: str) -> None:
    diverged(workspace)
    before = workspace.runs.list()
    with pytest.raises(UsageError, match=f"{setting.partition('=')[0]} cannot change") as refused:
        resumed(workspace, None, "train.learning_rate=1e-3", setting)
    assert "llmos train" in refused.value.hint
    assert workspace.runs.list() == before


def test_training_goes_on_from_a_revision(workspace: Workspace) -> None:
    first = trained(workspace)
    before = weights(workspace)
    second = trained(workspace, "HEAD", "train.max_steps=2")
    assert workspace.checkpoint().manifest.made.parents == (first.checkpoint,) == (second.parent,)
    assert second.metrics["test"]["loss"] < first.metrics["test"]["loss"]
    after = weights(workspace)
    assert before.keys() == after.keys()
    # Two steps move weights a little: these are the parent's, not fresh ones.
    gap = (after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]).abs().mean()
    assert gap < 0.3 * before["model.layers.0.mlp.up_proj.weight"].abs().mean()


def test_another_model_takes_over_what_fits(workspace: Workspace) -> None:
    trained(workspace)
    before, heard = weights(workspace), []
    trained(workspace, "HEAD", "model.num_hidden_layers=3", "train.learning_rate=1e-9", emit=heard.append)
    notes = [event.message for event in heard if isinstance(event, Note)]
    assert any("21 tensors come from" in note and "9 are new (model.layers.2." in note for note in notes)
    after = weights(workspace)
    torch.testing.assert_close(after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"])


def test_a_model_rebuilt_for_other_labels_keeps_the_sizes_that_it_was_imported_with(
    workspace: Workspace, tmp_path: Path, llmos: Llmos
) -> None:
    """Those its configuration class has by default too, and rows that this data does not need."""
    words = ["[PAD]", "[UNK]", *"abcdefgh"]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "bert"
    )
    default_width = BertConfig(vocab_size=16, num_hidden_layers=1, intermediate_size=64)
    BertForMaskedLM(default_width).save_pretrained(tmp_path / "bert")
    llmos("import", tmp_path / "bert", "--task", "text-classification")
    texts = "".join(json.dumps({"text": f"a b {row}", "label": "pqr"[row % 3]}) + "\n" for row in range(60))
    (workspace.root / "texts.jsonl").write_text(texts)
    data = "data: {task: text-classification, source: texts.jsonl, sequence_length: 32}"
    (workspace.configs / "train.yaml").write_text(f"{data}\ntrain: {{max_steps: 1, batch_size: 4}}\n")

    ran = llmos("train", "HEAD")
    assert "2 are new (classifier.bias, classifier.weight)" in ran.out + ran.err
    config = workspace.checkpoint("HEAD").config_json()
    assert (config["hidden_size"], config["max_position_embeddings"], config["vocab_size"]) == (768, 512, 16)


def test_a_model_that_nothing_fits_is_refused(workspace: Workspace) -> None:
    trained(workspace)
    narrow = ["model.hidden_size=48", "model.intermediate_size=80"]
    with pytest.raises(UsageError, match="No weight of"):
        trained(workspace, "HEAD", *narrow)


def test_a_teacher_is_learnt_from(workspace: Workspace) -> None:
    trained(workspace, None, "train.max_steps=30")
    heard: list[Event] = []
    result = trained(workspace, None, "train.teacher=HEAD", "train.teacher_weight=1.0", emit=heard.append)
    assert result.parent == ""
    assert "train.teacher" not in " ".join(event.message for event in heard if isinstance(event, Note))


def test_a_teacher_is_recorded_by_its_id_wherever_its_name_goes(workspace: Workspace, llmos: Llmos) -> None:
    teacher = trained(workspace).checkpoint
    student = trained(workspace, None, "train.teacher=HEAD", "model.num_hidden_layers=1")
    made = workspace.checkpoint(student.checkpoint).manifest.made
    assert (made.parents, made.config["train"]["teacher"]) == ((), teacher)
    assert workspace.runs.find(student.run).parents == (teacher,)
    assert f"teacher    {teacher[:12]}\n" in llmos("show").out
    compared = llmos("diff", teacher[:12], "HEAD").out
    assert any("train.teacher " in line and teacher[:12] in line for line in compared.splitlines())


@pytest.mark.parametrize("more", [(), ("train.hidden_weight=0.5",), ("train.teacher_top=8",)])
@pytest.mark.parametrize("rev", [None, "HEAD"])
def test_a_killed_run_goes_on_with_its_own_teacher_to_the_same_files(
    workspace: Workspace, llmos: Llmos, rev: str | None, more: tuple[str, ...]
) -> None:
    teacher = trained(workspace, None, "train.max_steps=20").checkpoint
    how = ("train.teacher=HEAD", "train.max_steps=6", "train.eval_every=1", "train.temperature=2", *more)
    if rev is None:
        how = ("model.num_hidden_layers=1", *how)
    straight = trained(workspace, rev, *how, move=False).checkpoint
    run = killed(workspace, signal.SIGINT, *how, rev=rev)
    other = trained(workspace, None, "seed=5", move=False).checkpoint
    assert llmos("checkout", other).code == 0 and workspace.resolve() != teacher
    resumed = resume(workspace, run, emit=lambda event: None)
    assert hashes(workspace, resumed.checkpoint) == hashes(workspace, straight)
    made = workspace.checkpoint(resumed.checkpoint).manifest.made
    assert (made.parents, made.config["train"]["teacher"]) == (() if rev is None else (teacher,), teacher)


def test_cross_validation_trains_with_the_same_teacher(workspace: Workspace, llmos: Llmos) -> None:
    trained(workspace, None, "train.max_steps=20")
    how = ("train.teacher=HEAD", "train.teacher_weight=1.0", "train.max_steps=6")
    trained(workspace, None, *how, "train.teacher_top=8")
    taught = llmos("eval", "HEAD", "--folds", 2, "--json", "-q").json
    trained(workspace, None, "train.max_steps=6")
    alone = llmos("eval", "HEAD", "--folds", 2, "--json", "-q").json
    one, other = (ran["evaluations"][0]["metrics"]["loss"]["value"] for ran in (taught, alone))
    assert one != other


def stages(heard: list[Event]) -> list[str]:
    return [event.stage for event in heard if isinstance(event, Progress)]


def test_a_teachers_top_logits_are_computed_once(workspace: Workspace) -> None:
    trained(workspace, None, "train.max_steps=20")
    tag(workspace, "base")
    how = ("train.teacher=base", "train.teacher_weight=1.0", "train.teacher_top=8", "model.num_hidden_layers=1")
    first: list[Event] = []
    trained(workspace, None, *how, emit=first.append)
    assert stages(first).count("teacher") == 4
    (entry,) = (workspace.cache / "teachers").iterdir()
    before = entry.stat().st_mtime_ns

    again: list[Event] = []
    trained(workspace, None, *how, "seed=3", "train.learning_rate=1e-3", emit=again.append)
    assert "teacher" not in stages(again)
    assert any("the teacher does not run" in event.message for event in again if isinstance(event, Note))
    assert [entry] == list((workspace.cache / "teachers").iterdir()) and entry.stat().st_mtime_ns == before

    for other in ("train.temperature=2", "data.max_samples=32", "train.teacher_top=4", "data.sequence_length=16"):
        heard: list[Event] = []
        trained(workspace, None, *how, other, emit=heard.append)
        assert "teacher" in stages(heard), other


def test_the_top_of_all_classes_trains_to_the_numbers_of_the_live_teacher(workspace: Workspace) -> None:
    trained(workspace, None, "train.max_steps=20")
    tag(workspace, "base")
    how = ("train.teacher=base", "train.precision=float32", "train.optimizer=sgd", "train.max_steps=8")
    live = trained(workspace, None, *how).metrics["test"]["loss"]
    assert trained(workspace, None, *how, "train.teacher_top=1000").metrics["test"]["loss"] == pytest.approx(live, rel=1e-4)  # fmt: skip


def test_a_pruned_student_keeps_its_zeros_when_it_is_taught(workspace: Workspace, llmos: Llmos) -> None:
    trained(workspace, None, "train.max_steps=20")
    tag(workspace, "base")
    pruned = llmos("prune", "--method", "magnitude", "--sparsity", "0.5", "-q")
    assert pruned.code == 0, pruned.err
    before, heard = weights(workspace), []
    trained(workspace, "HEAD", "train.teacher=base", "train.max_steps=6", emit=heard.append)
    after = weights(workspace)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(after[name] == 0, before[name] == 0) and (before[name] == 0).float().mean() > 0.4
    assert not torch.equal(after[name], before[name])
    notes = [event.message for event in heard if isinstance(event, Note)]
    assert any("are zero, and stay so" in note for note in notes)
    assert not any("training will change them" in note for note in notes)


def test_a_teacher_of_other_things_is_refused(workspace: Workspace) -> None:
    trained(workspace, None, "data.tokenizer.vocab_size=320")
    tag(workspace, "other")
    trained(workspace)
    with pytest.raises(UsageError, match=r"has another vocabulary than the model \(320 and 300 tokens") as refused:
        trained(workspace, "HEAD", "train.teacher=other")
    assert "share the model's task, vocabulary and labels" in refused.value.hint
    with pytest.raises(UsageError, match="does causal-lm, the model text-classification"):
        classify = ("data.task=text-classification", "data.source=builtin:docstrings", "model.arch=bert")
        trained(workspace, None, "train.teacher=HEAD", *classify)
    with pytest.raises(UsageError, match="asks for its hidden states"):
        trained(workspace, None, "train.teacher=HEAD", "train.teacher_top=4", "train.hidden_weight=1")


def test_augmented_samples_have_no_cached_teacher(
    new_workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = new_workspace(tmp_path / "images", "image-classification")
    monkeypatch.chdir(ws.root)
    trained(ws)
    with pytest.raises(UsageError, match=r"cannot be used with data\.augment") as refused:
        trained(ws, None, "train.teacher=HEAD", "train.teacher_top=4", "data.augment=true")
    assert "train.teacher_top" in refused.value.hint
    with pytest.raises(UsageError, match="tells no hidden states"):
        trained(ws, None, "train.teacher=HEAD", "train.hidden_weight=1")
    trained(ws, None, "train.teacher=HEAD", "train.teacher_top=4")


def test_a_plan_tells_of_the_teacher(workspace: Workspace) -> None:
    def planned(*sets: str) -> Any:
        return plan(workspace, None, resolve(workspace, "train", sets=sets), emit=lambda event: None)

    teacher, alone = trained(workspace).checkpoint, planned()
    assert alone.teacher == ""
    live = planned("train.teacher=HEAD")
    assert (live.teacher, live.teaches) == (teacher, "computed in every step")
    assert live.memory > alone.memory
    top = ("train.teacher=HEAD", "train.teacher_top=8")
    assert planned(*top).teaches == "top 8 and the rest, to be computed once"
    trained(workspace, None, *top, move=False)
    assert planned(*top).teaches == "top 8 and the rest, in the cache"
    hidden = planned("train.teacher=HEAD", "train.hidden_weight=1").teaches
    assert hidden == "computed in every step, hidden states of 3 pairs of layers compared"


def test_an_option_that_did_nothing_is_told(workspace: Workspace) -> None:
    heard: list[Event] = []
    trained(workspace, None, "train.temperature=3.0", emit=heard.append)
    notes = [event.message for event in heard if isinstance(event, Note)]
    assert any("train.temperature" in note and "had no effect" in note for note in notes)


def test_the_branch_can_be_left_where_it_is(workspace: Workspace) -> None:
    result = trained(workspace, move=False)
    assert workspace.head().checkpoint is None
    assert workspace.checkpoint(result.checkpoint[:12]).id == result.checkpoint


def test_a_plan_trains_nothing(workspace: Workspace) -> None:
    planned = plan(workspace, None, resolve(workspace, "train"), emit=lambda event: None)
    assert workspace.runs.list() == []
    assert (planned.steps, planned.samples, planned.positions, planned.task) == (4, 64, 32, "causal-lm")
    assert planned.parameters == planned.trained == trained(workspace).parameters
    assert 0 < planned.memory < planned.memory_free
    assert planned.epochs == 4 * 4 / 64


def test_a_frozen_backbone_keeps_its_weights(workspace: Workspace) -> None:
    trained(workspace, None, "model.tie_word_embeddings=false")
    before, parent = weights(workspace), workspace.checkpoint()
    trained(workspace, "HEAD", "model.tie_word_embeddings=false", "model.freeze=backbone")
    changed = {name for name, value in weights(workspace).items() if not torch.equal(value, before[name])}
    assert changed == {"lm_head.weight"}
    written = [path.name for path in files(parent.path) if not path.samefile(workspace.checkpoint().path / path.name)]
    assert written == [files(parent.path)[-1].name], "frozen blocks are the parent's own files"


def test_a_head_tied_to_the_embedding_is_untied_to_train_beside_a_frozen_backbone(workspace: Workspace) -> None:
    trained(workspace)
    before = weights(workspace)
    with pytest.raises(UsageError, match="nothing to train"):
        trained(workspace, "HEAD", "model.freeze=backbone")
    trained(workspace, "HEAD", "model.freeze=backbone", "model.tie_word_embeddings=false")
    after = weights(workspace)
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} == {"lm_head.weight"}


def test_sizes_without_an_architecture_change_the_parents_own(workspace: Workspace) -> None:
    trained(workspace)
    sizes = ("arch", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

    def go_on(key: str) -> None:
        resolved = resolve(workspace, "train", sets=[key], unsets=[f"model.{size}" for size in sizes])
        train(workspace, "HEAD", resolved, emit=lambda event: None)

    with pytest.raises(UsageError, match="hidden_dropout is no key of llama"):
        go_on("model.hidden_dropout=0.5")
    go_on("model.num_hidden_layers=3")
    made = workspace.checkpoint().config_json()
    assert (made["num_hidden_layers"], made["hidden_size"]) == (3, 32)


def test_another_architecture_replaces_the_whole_section(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="is no key of gpt2") as refused:
        trained(workspace, None, "model.arch=gpt2")
    assert "-s 'model={arch: gpt2}' replaces the whole section" in refused.value.hint
    trained(workspace, None, "model={arch: gpt2}")
    assert workspace.checkpoint().config_json()["model_type"] == "gpt2"


def test_no_task_and_no_end_are_usage_errors(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="Nothing says when training ends"):
        train(workspace, None, resolve(workspace, "train", unsets=["train.max_steps"]), emit=lambda event: None)
    with pytest.raises(UsageError, match=r"data\.task is not set"):
        train(workspace, None, resolve(workspace, "train", unsets=["data.task"]), emit=lambda event: None)
    assert workspace.head().checkpoint is None


@pytest.mark.slow
def test_several_configs_are_several_runs(workspace: Workspace, tmp_path: Path) -> None:
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for file, steps in zip(files, (2, 3), strict=True):
        file.write_text(f"train: {{max_steps: {steps}}}\n")
    result = several(workspace, None, files, ["seed=4"], [], jobs=2, emit=lambda event: None)
    assert [run["steps"] for run in result.runs] == [2, 3]
    assert workspace.head().checkpoint is None
    assert all(workspace.manifest(run["checkpoint"]).made.seed == 4 for run in result.runs)
    files[0].write_text("train: {max_stepz: 2}\n")
    with pytest.raises(LlmosError, match=r"one\.yaml failed: .*max_stepz"):
        several(workspace, None, files[:1], [], [], jobs=1, emit=lambda event: None)


def test_every_failure_of_several_is_named(workspace: Workspace, tmp_path: Path) -> None:
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for file in files:
        file.write_text(f"train: {{{file.stem}: 2}}\n")
    with pytest.raises(LlmosError) as caught:
        several(workspace, None, files, [], [], jobs=2, emit=lambda event: None)
    first, second = caught.value.message.split("; training with ")
    assert "one.yaml failed: " in first and "train.one" in first
    assert "two.yaml failed: " in second and "train.two" in second


def test_a_pruned_parent_is_warned_about(workspace: Workspace) -> None:
    trained(workspace)
    pruned = load(workspace.checkpoint().path)
    with torch.no_grad():
        for layer in pruned.model.layers:
            layer.mlp.up_proj.weight.zero_()
    made = workspace.checkpoint().manifest.made
    with workspace.begin("prune", config={}) as run, workspace.stage() as folder:
        save(pruned, folder, dtype=torch.bfloat16, processor=AutoTokenizer.from_pretrained(workspace.checkpoint().path))
        run.commit(folder, replace(made, operation="prune", parents=(workspace.resolve(),)))
    heard: list[Event] = []
    trained(workspace, "HEAD", emit=heard.append)
    assert any("of the weights of" in event.message and "are zero" in event.message for event in heard if isinstance(event, Note))  # fmt: skip


def test_the_commands(workspace: Workspace, llmos: Llmos) -> None:
    planned = llmos("train", "--dry-run", "--json")
    assert (planned.code, planned.json["steps"]) == (0, 4)
    ran = llmos("train", "-s", "train.max_steps=2", "--json", "--quiet")
    assert (ran.code, ran.json["steps"], ran.json["branch"], ran.err) == (0, 2, "main", "")
    again = llmos("train", "HEAD", "--keep-branch")
    assert again.code == 0 and "2 steps" not in again.out and "test: bits_per_byte" in again.out
    assert workspace.resolve() == ran.json["checkpoint"]

    mixed = llmos("train", "HEAD", "--resume")
    assert (mixed.code, mixed.out) == (2, "") and "as it was begun" in mixed.err
    assert llmos("train", "nonesuch").code == 4
    assert llmos("train", "--jobs", 2).code == 2

    said = llmos("generate", "-p", "The for", "--max-tokens", 4)
    assert said.code == 0 and said.out.startswith("The for") and said.out.endswith("\n")
    piped = llmos("generate", "--max-tokens", 4, "--json", stdin="The for")
    assert piped.json["prompt"] + piped.json["text"] == said.out.removesuffix("\n")
