"""Shell completion: the script that a shell loads, and the names it is then offered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llmos_cli import catalog
from llmos_cli.core.refs import HEADS, ID, STAGES, TAGS
from llmos_cli.core.view import short
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError, UsageError

if TYPE_CHECKING:
    from llmos_cli.core.records import RunRecord
    from llmos_cli.core.section import Section

SCRIPTS = {
    "bash": """\
_llmos_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _LLMOS_COMPLETE=complete_bash "$1" ) )
    [[ ${COMPREPLY-} == *= ]] && compopt -o nospace
}
complete -o default -F _llmos_completion llmos
""",
    "zsh": """\
#compdef llmos
_llmos_completion() {
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _LLMOS_COMPLETE=complete_zsh llmos)
}
compdef _llmos_completion llmos
""",
    "fish": """\
complete --command llmos --no-files --arguments "(env _LLMOS_COMPLETE=complete_fish \
_TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=(commandline -cp) llmos)"
""",
}


@dataclass(frozen=True)
class CompletionResult:
    shell: str
    script: str

    def view(self) -> str:
        return self.script


def completion(shell: str) -> CompletionResult:
    if shell not in SCRIPTS:
        raise UsageError(f"no completion for {shell!r}", hint=catalog.did_you_mean(shell, SCRIPTS))
    return CompletionResult(shell, SCRIPTS[shell])


def names_for(parameter: str, verb: str, incomplete: str) -> list[str]:
    """What may stand for a parameter of that name and begins with `incomplete`; no names outside a workspace."""
    offer = _OFFERS.get(parameter)
    try:
        offered = offer(verb, incomplete) if offer else []
    except LlmosError:
        return []
    return [name for name in offered if name.startswith(incomplete)]


def _revisions(verb: str, incomplete: str) -> list[str]:
    ws = Workspace.find()
    names = ["HEAD", *ws.refs.under(HEADS), *ws.refs.under(TAGS), *(f"stages/{name}" for name in ws.refs.under(STAGES))]
    return [*names, *_identifiers(ws)] if incomplete else names


def _identifiers(ws: Workspace) -> list[str]:
    """Of all checkpoints, as they are shown: too many to offer to who has typed nothing."""
    return sorted(short(path.name) for path in ws.checkpoints.iterdir() if ID.fullmatch(path.name))


def _runs(verb: str, incomplete: str) -> list[str]:
    return _called(Workspace.find().runs.list())


def _called(runs: Sequence[RunRecord]) -> list[str]:
    return [*dict.fromkeys(run.name for run in runs if run.name), *(run.id for run in runs)]


def _names(verb: str, incomplete: str) -> list[str]:
    """`name` is another thing for each command; of a new deployment there is nothing to offer."""
    ws = Workspace.find()
    known: Mapping[str, Callable[[], Sequence[str]]] = {
        "stop": lambda: _called(ws.runs.alive()),
        "logs": lambda: _called(ws.runs.list()),
        "branch": lambda: [*ws.refs.under(HEADS)],
        "tag": lambda: [*ws.refs.under(TAGS)],
        "remote": lambda: _remotes(verb, incomplete),
    }
    return list(known[verb]()) if verb in known else []


def _remotes(verb: str, incomplete: str) -> list[str]:
    from llmos_cli.operations.remote import settings

    return list(settings(Workspace.find()))


def _methods(verb: str, incomplete: str) -> list[str]:
    return list(catalog.methods(verb))


def _templates(verb: str, incomplete: str) -> list[str]:
    from llmos_cli.operations.templates import names

    return names()


def _keys(verb: str, incomplete: str) -> list[str]:
    """Dotted config keys of a verb; of commands that take any verb's, all."""
    from llmos_cli.options.verbs import ROOTS

    own = "eval" if verb == "predict" else verb
    roots = [ROOTS[own]] if own in ROOTS else ROOTS.values()
    return list(dict.fromkeys(key for root in roots for key in _keys_of(root, "")))


def _keys_of(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if section.is_section(name):
            yield from _keys_of(cast("type[Section]", field.annotation), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
    if section.has_methods:
        for method in catalog.methods(prefix.rstrip(".")).values():
            yield from (f"{prefix}{method.name}.{option.name}" for option in catalog.options(method))


def _assignments(verb: str, incomplete: str) -> list[str]:
    return [f"{key}=" for key in _keys(verb, incomplete)]


_OFFERS: Mapping[str, Callable[[str, str], list[str]]] = {
    **dict.fromkeys(("rev", "revs", "revision", "revisions", "one", "other", "teacher", "base", "weights"), _revisions),
    "run": _runs,
    "name": _names,
    "remote": _remotes,
    "method": _methods,
    "sampler": _methods,
    "template": _templates,
    "sets": _assignments,
    "unsets": _keys,
}
"""By the name of a command's parameter; each is told the verb and what is typed already."""
