"""The options of a search that is gone on with by its name: what its study was made with, where the user does not say otherwise now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.errors import UsageError
from llmos_cli.operations.tuning import space as spaces
from llmos_cli.operations.tuning import study as studies
from llmos_cli.options.verbs import TuneOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace

_THE_SEARCH = {"space", "objectives"}
"""What makes the study this one: with another it would be another search."""


def resumption(ws: Workspace, resolved: Resolved) -> TuneOptions:
    """The config's options where they name no study that exists; UsageError for what would make it another search."""
    options: TuneOptions = resolved.config.tune
    kept = _kept(options.study, studies.storage_url(options.storage, ws.dot)) if options.study else {}
    said = {key for key in kept if _said(key, resolved)}
    if "space" in said:
        _check_space(options, kept["space"])
    if "objectives" in said and options.objectives:
        _check_objectives(options, kept["objectives"])
    return options.model_copy(update={key: kept[key] for key in kept if key in _THE_SEARCH or key not in said})


def _kept(name: str, storage: str) -> dict[str, Any]:
    """Looking makes no database where there is none."""
    file = storage.removeprefix("sqlite:///")
    if file != storage and not Path(file.partition("?")[0]).is_file():
        return {}
    return studies.kept(name, studies.open_storage(storage))


def _check_space(options: TuneOptions, kept: Mapping[str, Any]) -> None:
    space = spaces.read(kept)
    if spaces.read(options.space) != space:
        told = "; ".join(f"{key}: {dimension}" for key, dimension in space.items())
        raise UsageError(
            f"study {options.study} searches {told}",
            hint="drop tune.space to go on with it, or give --study another name",
        )


def _check_objectives(options: TuneOptions, kept: Mapping[str, str]) -> None:
    """Their order counts: the first one ranks the trials."""
    if list(options.objectives.items()) != list(kept.items()):
        raise UsageError(
            f"study {options.study} searches for {studies.towards(kept)}, not {studies.towards(options.objectives)}",
            hint="drop tune.objectives to go on with it, or give --study another name",
        )


def _said(key: str, resolved: Resolved) -> bool:
    """Whether the user sets `tune.KEY` for this study: where it is named on the command line, there. The files may be about
    any other, but are about this one where they name it."""
    told = [origin for leaf, origin in resolved.origin.items() if f"{leaf}.".startswith(f"tune.{key}.")]
    if _of_a_file(resolved.origin.get("tune.study", ""), resolved):
        return bool(told)
    return any(not _of_a_file(origin, resolved) for origin in told)


def _of_a_file(origin: str, resolved: Resolved) -> bool:
    return origin.startswith((f"configs/{resolved.verb}.yaml:", "llmos.yaml:"))
