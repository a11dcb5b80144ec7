"""Shell completion: the script that a shell loads, and the names it is then offered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmos_cli import catalog
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError, UsageError

SCRIPTS = {
    "bash": """\
_llmos_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _LLMOS_COMPLETE=complete_bash "$1" ) )
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


def names_for(parameter: str, verb: str) -> list[str]:
    """What may stand for a parameter of that name; nothing outside a workspace."""
    offer = _OFFERS.get(parameter)
    try:
        return offer(verb) if offer else []
    except LlmosError:
        return []


def _revisions(verb: str) -> list[str]:
    refs = Workspace.find().refs
    return ["HEAD", *refs.under(HEADS), *refs.under(TAGS)]


def _runs(verb: str) -> list[str]:
    runs = Workspace.find().runs.list()
    return [*dict.fromkeys(run.name for run in runs if run.name), *(run.id for run in runs)]


def _methods(verb: str) -> list[str]:
    return list(catalog.methods(verb))


def _templates(verb: str) -> list[str]:
    from llmos_cli.operations.templates import names

    return names()


_OFFERS: Mapping[str, Callable[[str], list[str]]] = {
    **dict.fromkeys(("rev", "revs", "revision", "revisions", "one", "other", "teacher", "base"), _revisions),
    **dict.fromkeys(("run", "name"), _runs),
    "method": _methods,
    "template": _templates,
}
"""By the name of a command's parameter."""
