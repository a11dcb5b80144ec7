"""How good the three classifying templates are beside scikit-learn's baselines, on the same splits in the same run.

    python benchmarks/tasks.py [digits] [docstrings] [pytokens]

Each model is what `llmos init --template ... && llmos train` makes (with another `model.arch` where said), judged on the
test split. Baselines see the same training rows; their one setting is chosen on validation. Exits 1 when a bound that
the README states does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from llmos_cli import device
from llmos_cli.core.workspace import Workspace
from llmos_cli.data.rows import Rows
from llmos_cli.data.sources import load
from llmos_cli.events import ignore
from llmos_cli.operations.config import resolve
from llmos_cli.operations.init import init
from llmos_cli.operations.train import train
from llmos_cli.tasks import load as task_called

Splits = Mapping[str, Rows]
TEXT_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "classifier_pooling")


@dataclass(frozen=True)
class Model:
    """A template's config with `sets` and `unsets` on top."""

    sets: tuple[str, ...] = ()
    unsets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """`bounds`: what must hold of (our models' scores, the baselines' scores)."""

    template: str
    metric: str
    models: Mapping[str, Model]
    baselines: Callable[[Splits], Mapping[str, float]]
    bounds: Mapping[str, Callable[[Mapping[str, float], Mapping[str, float]], bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="{digits,docstrings,pytokens}")
    asked = parser.parse_args().what or list(CASES)
    if unknown := set(asked) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    print(f"{device.processor()}, {device.threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    held = [run(name, CASES[name]) for name in asked]
    sys.exit(0 if all(held) else 1)


def run(name: str, case: Case) -> bool:
    """Print the comparison of one data set; whether its bounds hold."""
    with tempfile.TemporaryDirectory() as folder:
        init(Path(folder), case.template)
        workspace = Workspace.find(Path(folder))
        splits = rows(workspace, case.template)
        print(f"\n{name}: {case.metric} on {len(splits['test']):,} test rows, {len(splits['train']):,} in training")
        ours = {label: trained(workspace, label, model, case.metric) for label, model in case.models.items()}
        theirs = case.baselines(splits)
    for label, score in theirs.items():
        print(f"  {label:<44} {score:.4f}")
    held = {sentence: bound(ours, theirs) for sentence, bound in case.bounds.items()}
    for sentence, holds in held.items():
        print(f"  {'holds' if holds else 'FAILS'}: {sentence}")
    return all(held.values())


def rows(workspace: Workspace, template: str) -> Splits:
    data = resolve(workspace, "train").config.data
    return load(data, task_called(template).columns, cache=workspace.cache).splits


def trained(workspace: Workspace, label: str, model: Model, metric: str) -> float:
    resolved = resolve(workspace, "train", sets=model.sets, unsets=model.unsets)
    cpu = time.process_time()
    result = train(workspace, None, resolved, emit=ignore)
    cpu = time.process_time() - cpu
    score = result.metrics["test"][metric]
    print(f"  {label:<44} {score:.4f}   {result.parameters:>9,} parameters, {result.steps:,} steps, {cpu:.0f} CPU s")
    return score


def pixels(splits: Splits) -> Mapping[str, float]:
    """Linear and kernel classifiers on the pixels."""

    def features(name: str) -> Any:
        images = np.asarray(list(splits[name]["image"]), np.float64)
        return images.reshape(len(images), -1) / 255

    made = {
        "logistic regression": lambda c: LogisticRegression(C=c, max_iter=2000),
        "support vectors (RBF)": lambda c: SVC(C=c),
    }
    return {name: chosen(make, features, splits) for name, make in made.items()}


def words(splits: Splits) -> Mapping[str, float]:
    """Words and pairs of words by TF-IDF into logistic regression."""

    def make(c: float) -> Any:
        vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        return make_pipeline(vectors, LogisticRegression(C=c, max_iter=500))

    return {"TF-IDF + logistic regression": chosen(make, lambda name: list(splits[name]["text"]), splits)}


def chosen(make: Callable[[float], Any], features: Callable[[str], Any], splits: Splits) -> float:
    """Test accuracy of the model whose C does best on validation."""
    labels = {name: list(split["label"]) for name, split in splits.items()}
    fitted = [make(c).fit(features("train"), labels["train"]) for c in (1.0, 10.0, 100.0)]
    best = max(fitted, key=lambda model: model.score(features("validation"), labels["validation"]))
    return float(best.score(features("test"), labels["test"]))


def majority(splits: Splits) -> Mapping[str, float]:
    """Each token string's commonest tag in training; the commonest tag of unseen strings for those never seen."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for tokens, tags in splits["train"]:
        for token, tag in zip(tokens, tags, strict=True):
            seen[token][tag] += 1
    commonest = {token: counts.most_common(1)[0][0] for token, counts in seen.items()}
    rare = Counter(tag for token, counts in seen.items() if counts.total() == 1 for tag in counts).most_common(1)[0][0]
    truth = [tag for tags in splits["test"]["tags"] for tag in tags]
    guess = [commonest.get(token, rare) for tokens in splits["test"]["tokens"] for token in tokens]
    return {"majority class of each token string": float(f1_score(truth, guess, average="macro", zero_division=0.0))}


TFIDF, MAJORITY = "TF-IDF + logistic regression", "majority class of each token string"
CASES = {
    "digits": Case(
        "image-classification",
        "accuracy",
        {"cnn": Model(), "mlp": Model(sets=("model.arch=mlp",))},
        pixels,
        {"cnn >= 0.97": lambda ours, theirs: ours["cnn"] >= 0.97},
    ),
    "docstrings": Case(
        "text-classification",
        "accuracy",
        {
            "Transformer (eurobert)": Model(),
            "lstm": Model(sets=("model.arch=lstm",), unsets=tuple(f"model.{key}" for key in TEXT_KEYS)),
            "bag of subwords": Model(sets=("model.arch=bag", "train.optimizer=adamw", "train.learning_rate=1e-2", "train.max_epochs=10", "data.augment=true"), unsets=tuple(f"model.{key}" for key in TEXT_KEYS if key != "hidden_size")),
        },
        words,
        {
            "Transformer at most 8 points below TF-IDF": lambda ours, theirs: ours["Transformer (eurobert)"] >= theirs[TFIDF] - 0.08,
            "best of ours at most 2 points below TF-IDF": lambda ours, theirs: max(ours.values()) >= theirs[TFIDF] - 0.02,
        },
    ),
    "pytokens": Case(
        "token-classification",
        "macro_f1",
        {"Transformer (eurobert)": Model()},
        majority,
        {
            "macro F1 >= 0.90": lambda ours, theirs: ours["Transformer (eurobert)"] >= 0.90,
            "10 points above the majority class": lambda ours, theirs: min(ours.values()) >= theirs[MAJORITY] + 0.1,
        },
    ),
}  # fmt: skip


if __name__ == "__main__":
    main()
