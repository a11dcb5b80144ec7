"""The `data` section: where examples come from and how they are cut up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmos_cli.core.section import Section


class Columns(Section):
    """Names of the columns in the user's data; guessed when absent (`text`, `content`, `label`, `class`, `tokens`, `tags`, `image`...)."""

    text: str | None = None
    label: str | None = None
    image: str | None = None
    tokens: str | None = None
    tags: str | None = None


class Source(Section):
    """One source and how often its training part is repeated."""

    source: str
    repeat: int = Field(1, ge=1)


class Tokenizer(Section):
    """How text becomes tokens: a BPE trained on the training text, or the tokenizer of a directory or a hub id."""

    type: Literal["bpe", "from"] = "bpe"
    vocab_size: int = Field(4096, ge=300)
    path: str | None = None
    """Directory (relative to the workspace) or hub id to take the tokenizer from, with `type: from`."""


class DataOptions(Section):
    task: Literal["causal-lm", "image-classification", "text-classification", "token-classification"] | None = None
    """The kind of task; with an existing checkpoint, its own."""
    source: str | list[str | Source] | None = None
    """`builtin:NAME`, a file or folder (csv, json, jsonl, parquet, txt, CoNLL, image folder, saved datasets), a hub id, or an fsspec URL; several are concatenated."""
    evaluate: str | None = None
    """Which of the sources evaluation uses; all when absent."""
    format: str | None = None
    """csv, json, parquet, text, conll, imagefolder, datasets, hub; guessed from the name when absent."""
    columns: Columns = Columns()
    splits: dict[Literal["train", "validation", "test"], str] = {}
    """Names of the source's own splits or files; a split that is absent is made by hashing."""
    validation_fraction: float = Field(0.05, gt=0, lt=0.5)
    test_fraction: float = Field(0.05, gt=0, lt=0.5)
    sequence_length: int = Field(256, ge=8)
    """Tokens in a sequence; documents are packed into sequences of this length for language models and cut to it elsewhere."""
    tokenizer: Tokenizer = Tokenizer()
    max_samples: int | None = Field(None, ge=1)
    """Use at most this many training samples."""
    max_eval_samples: int | None = Field(None, ge=1)
    """Evaluate on at most this many samples (sequences for language models)."""
    mask_pii: bool = False
    """Put `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]`, `[IP]`, `[SSN]`, `[SECRET]` in place of personal data in texts, wherever they are read; `llmos data check --pii` tells of it."""
    augment: bool = False
    """Vary training samples from epoch to epoch: images are shifted, turned and scaled a little, texts lose a tenth of their tokens."""

    def elsewhere(self, source: str) -> DataOptions:
        """Of another source: what is said of its own goes with that."""
        return self.model_copy(update={"source": source, "evaluate": None, "splits": {}, "format": None})

    def all_of(self, source: str) -> DataOptions:
        """The same, with nothing held out that the other source does not hold out itself: what calibration reads."""
        return self.elsewhere(source).model_copy(update={"validation_fraction": 0.0, "test_fraction": 0.0})
