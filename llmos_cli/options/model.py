"""The `model` section: which architecture, at which widths."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from llmos_cli.core.section import Section


class ModelOptions(Section):
    """`arch` names a transformers model type (`llama`, `bert`...) or one of ours (`mlp`, `cnn`, `lstm`, `bag`); every other key
    is passed to its configuration class, which says which keys exist."""

    model_config = ConfigDict(extra="allow")

    arch: str | None = None
    module: str | None = None
    """`my_model.py:Net`: your own PreTrainedModel class, run only when trusted."""
    freeze: Literal["none", "backbone"] = "none"
    """`backbone`: train the head alone."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the saved weights: bfloat16 for language models, float32 elsewhere, unless told."""

    def widths(self) -> dict[str, Any]:
        """The keys for the architecture's configuration class."""
        widths = dict(self.__pydantic_extra__ or {})
        self._read.update(widths)
        return widths

    def width(self, name: str) -> Any:
        """One of those keys; None where it is not set."""
        if name in (widths := self.__pydantic_extra__ or {}):
            self._read.add(name)
        return widths.get(name)
