"""Our small architectures for those who have transformers and not llmos: one Python file beside the weights.

AutoModelForImageClassification.from_pretrained(DIRECTORY, trust_remote_code=True)
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmos_cli.errors import UsageError
from llmos_cli.models.architectures import base
from llmos_cli.models.module import MODULE_KEY

OURS = ("mlp", "cnn", "lstm", "bag")
IMPORT = "from llmos_cli.models.architectures.base import"
REGISTER = "\n\nAutoConfig.register("


def check(config: Mapping[str, Any]) -> None:
    """UsageError for an architecture that is not one of our small ones, by the checkpoint's config.json."""
    if own := config.get(MODULE_KEY):
        raise UsageError(
            f"--standalone writes the code of our architectures, and {own['file']} is your own",
            hint="leave it out: the file is in every export, beside the weights",
        )
    kind = config["model_type"]
    if kind not in OURS:
        raise UsageError(f"{kind} needs no code of its own", hint="leave out --standalone: transformers knows it")


def write(directory: Path) -> str:
    """Add the architecture's source to a dense checkpoint directory and name it in config.json; returns the file's name."""
    file = directory / "config.json"
    config: dict[str, Any] = json.loads(file.read_bytes())
    kind, name = config["model_type"], config["architectures"][0]
    module = importlib.import_module(f"llmos_cli.models.architectures.{kind}")
    (directory / f"modeling_{kind}.py").write_text(_source(module), encoding="utf-8")
    classes = {"AutoConfig": f"{kind.title()}Config", "AutoModel" + name.removeprefix(kind.title()): name}
    config["auto_map"] = {auto: f"modeling_{kind}.{cls}" for auto, cls in classes.items()}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return f"modeling_{kind}.py"


def _source(module: Any) -> str:
    """The architecture's file with the base it imports in its place, and without registering itself: `auto_map` does that."""
    text = inspect.getsource(module).partition(REGISTER)[0].rstrip() + "\n"
    head, line, tail = text.partition(IMPORT)
    _, _, rest = tail.partition("\n")
    return f"{head}{_definitions(inspect.getsource(base))}{rest}" if line else text


def _definitions(text: str) -> str:
    """All of the base but its docstring: imports are at home in the middle of a file too."""
    return text.split('"""', 2)[2].lstrip().replace("from __future__ import annotations\n", "")
