"""A model class of the user's own: `module: my_model.py:Net`, run only when trusted, kept in the checkpoint beside its weights."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedConfig, PreTrainedModel

from llmos_cli.core import trust
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import ConfigError, NotFound

MODULE_KEY = "llmos_module"
"""Key of config.json: `{"file": ..., "class": ..., "sha256": ...}`."""


def load_class(file: Path, name: str) -> type[PreTrainedModel]:
    """The class `name` of `file`, executed only if the file's hash is trusted (errors.Untrusted otherwise)."""
    if not file.is_file():
        raise NotFound(f"there is no module {file}", hint="`model.module` is FILE.py:CLASS, relative to the workspace")
    source = trust.require(_workspace(file), file)
    found = getattr(_execute(source, file), name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ConfigError(
            f"{file.name} has no transformers.PreTrainedModel class {name!r}",
            hint="derive the class from PreTrainedModel and give it a `config_class`",
        )
    found.__llmos_file__ = str(file)  # type: ignore[attr-defined]
    return found


def _workspace(file: Path) -> Workspace:
    """The one the file lies in; an exported copy is trusted by the workspace one works in."""
    try:
        return Workspace.find(file.parent)
    except NotFound:
        return Workspace.find()


def split(reference: str) -> tuple[str, str]:
    """`my_model.py:Net` as file and class name."""
    file, colon, name = reference.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"model.module is {reference!r}, not FILE.py:CLASS", hint="for example my_model.py:Net")
    return file, name


def record(config: PreTrainedConfig, file: Path, name: str) -> None:
    """Note in the configuration which class of which file the model is."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    setattr(config, MODULE_KEY, {"file": file.name, "class": name, "sha256": digest})


def _execute(source: bytes, file: Path) -> ModuleType:
    """The module that these bytes are, and no others: Python's own import would run a .pyc that lies beside the file."""
    # Named by content: two checkpoints' versions of one file are two modules.
    name = f"llmos_module_{hashlib.sha256(source).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(file)
        sys.modules[name] = module
        try:
            exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
