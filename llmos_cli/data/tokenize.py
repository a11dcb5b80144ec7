"""How text becomes tokens: a byte-level BPE trained on the training text alone, or the tokenizer of a directory.

Every tokenizer is a transformers fast one, so that a checkpoint carries it in the form that transformers, vLLM and the
server read. Special tokens that stand in the user's text are encoded as the text they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmos_cli.core.sealed import TOKENIZERS
from llmos_cli.data.cache import entry
from llmos_cli.data.tokenizer_config import LOADING
from llmos_cli.errors import Corrupt, NotFound, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Item = TypeVar("Item")

END, PAD, CLASS = "<|endoftext|>", "<|pad|>", "<|class|>"
TRAINING_TEXT = 100_000_000
"""Characters that a BPE is trained on at most: more changes no merge worth having."""
BATCH = 256


def bpe(
    texts: Sequence[str], *, vocab_size: int, key: Any, cache: Path, classifies: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2's rule of words, no prefix space) over `texts`, made once per `key`, which must name them.

    Language models need END alone, to part documents. Classifiers also PAD, and CLASS in front of each text, whose
    position encoders read the class from.
    """

    def build(directory: Path) -> None:
        _trained(texts, vocab_size, classifies).save(str(directory / "tokenizer.json"))

    directory = entry(cache, TOKENIZERS, ["bpe/1", vocab_size, classifies, key], build)
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": PAD, "cls_token": CLASS} if classifies else {"pad_token": END, "bos_token": END}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(directory / "tokenizer.json"), eos_token=END, **special
    )


def _trained(texts: Sequence[str], vocab_size: int, classifies: bool) -> Backend:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = [END, PAD, CLASS] if classifies else [END]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_at_most(texts, TRAINING_TEXT), trainer)
    if classifies:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{CLASS} $A", special_tokens=[(CLASS, special.index(CLASS))]
        )
    return backend


def _at_most(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


def existing(place: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer that a checkpoint directory, another directory or a hub id holds."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = load_tokenizer(place)
    except (OSError, ValueError) as error:
        raise NotFound(
            f"there is no tokenizer at {place}",
            hint="data.tokenizer.path takes a directory with tokenizer.json, or the id of a model on the hub (needs network).",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(
            f"the tokenizer at {place} has no tokenizer.json",
            hint="Load it once with transformers and save it again with save_pretrained() to get one.",
        )
    return tokenizer


def load_tokenizer(place: str | Path) -> PreTrainedTokenizerBase:
    """What transformers finds in a directory, or on the hub under an id; never with code that lies beside it. Saved, it is what it was:
    how it was loaded is no setting of its own. Corrupt where a directory has one that does not load."""
    from transformers import AutoTokenizer

    here = Path(place).is_dir()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(place), local_files_only=here, trust_remote_code=False
        )
    except Exception as problem:  # the tokenizers library raises nothing narrower
        if not (Path(place) / "tokenizer.json").is_file():
            raise
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise Corrupt(
            f"the tokenizer at {place} does not load: {reason[:200]}",
            hint="of a checkpoint, `llmos fsck` tells whether it is as it was stored; data.tokenizer.path names another",
        ) from problem
    for name in LOADING:
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that decides how text becomes ids."""
    return hashlib.sha256(backend_of(tokenizer).to_str().encode()).hexdigest()


def backend_of(tokenizer: PreTrainedTokenizerFast) -> Backend:
    """The Rust tokenizer, without truncation or padding left over from its last use."""
    backend: Backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def end_of_text(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that parts documents."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise UsageError(
        "the tokenizer has no end-of-text token to part documents with",
        hint="Set its eos_token and save it again, or train one with data.tokenizer.type: bpe.",
    )


def encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    """The ids of each text, without special tokens, in order, a few hundred texts at a time."""
    backend = backend_of(tokenizer)
    for batch in batched(texts):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            yield encoding.ids


def batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class ByteCounter:
    """UTF-8 bytes of text behind each token, so that every byte of a text is counted exactly once.

    A byte-level vocabulary says it token by token (one character of a token is one byte). Any other tokenizer is asked
    where in the text its tokens end: a token stands for the bytes since the end of the one before, the last one for what
    is left (trailing characters that a normalizer dropped).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.backend = backend_of(tokenizer)
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        self.lengths = np.zeros(max(vocabulary.values(), default=-1) + 1, np.int64)  # ids may be left out
        for token, index in vocabulary.items():
            self.lengths[index] = len(token)

    def __call__(self, text: str, ids: Sequence[int]) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = self.lengths[np.asarray(ids, np.int64)]
        if int(lengths.sum()) == len(text.encode("utf-8", "surrogatepass")):
            return lengths
        return self._by_offsets(text)

    def _by_offsets(self, text: str) -> NDArray[np.int64]:
        ends = [end for _, end in self.backend.encode(text, add_special_tokens=False).offsets]
        if not ends:
            return np.zeros(0, np.int64)
        sizes = [0, *(len(character.encode("utf-8", "surrogatepass")) for character in text)]
        before = np.cumsum(sizes)  # bytes before each character, and in all
        reached = np.maximum.accumulate(np.asarray(ends, np.int64))
        reached[-1] = len(text)
        return np.diff(before[reached], prepend=0)
