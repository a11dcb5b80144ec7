"""What every test has: an isolated home, no network, one thread, the command line as a callable, and a tiny workspace."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    NO_COLOR="1",
    COLUMNS="100",
)

import hypothesis
import pytest

# How long a busy machine takes says nothing of the code.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

SKIPS_ALLOWED = (
    "needs an accelerator",
    "needs root",
    "needs the tool",
    "needs an environment of its own",
)
"""Reasons for which a test may be skipped; any other skip fails the run: a test that silently stops running is worse than none."""


@dataclass(frozen=True)
class Ran:
    """What one command did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        import json

        return json.loads(self.out)


Llmos = Callable[..., Ran]


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing a test does reaches the user's folders, and none of the user's settings reach a test."""
    home, measured = tmp_path_factory.mktemp("home"), tmp_path_factory.getbasetemp() / "bf16-speed.json"
    (home / "cache").mkdir()
    if measured.exists():  # once, as for a user: the processes of one test must not compute in different ways
        shutil.copy(measured, home / "cache")
    for name in [name for name in os.environ if name.startswith("LLMOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMOS_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("LLMOS_CACHE_HOME", str(home / "cache"))
    # Ours are compiled in tests of kernels alone: ten seconds for every new home.
    monkeypatch.setenv("LLMOS_COMPILE", "off")
    yield home
    if not measured.exists() and (home / "cache" / measured.name).exists():
        shutil.copy(home / "cache" / measured.name, measured)


@pytest.fixture(scope="session")
def _warmth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """How to start a warm process; the warm interpreter itself begins with the first."""
    from tests.warm import Warm

    begun: list[Warm] = []

    def start(*told: Any) -> int:
        if not begun:
            begun.append(Warm.start(tmp_path_factory.mktemp("home")))
        return begun[0].fork_exec(*told)

    yield start
    for each in begun:
        each.close()


@pytest.fixture(scope="module")
def warm(_warmth: Callable[..., int]) -> Iterator[None]:
    """What the module's tests start of Python is forked from an interpreter that has imported the libraries (tests/warm.py), but
    for tests marked cold."""
    from tests.warm import warmed

    with warmed(_warmth) if sys.platform == "linux" else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def _cold(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("cold") is None:
        yield
        return
    from tests.warm import cold, warmed

    with warmed(cold):
        yield


@pytest.fixture(scope="session")
def libraries(of_all_workers: Path) -> Path:
    """The cache folder, one for all workers, of what tests compile."""
    return of_all_workers / "compiled"


@pytest.fixture
def compiled(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the test our own C++ of the mathematics is compiled, once a session, and used."""
    from llmos_cli.models.kernels import calls

    monkeypatch.delenv("LLMOS_COMPILE")
    monkeypatch.setenv("LLMOS_CACHE_HOME", str(libraries))
    calls.obstacle.cache_clear()
    yield
    calls.obstacle.cache_clear()


@pytest.fixture
def llmos() -> Llmos:
    """`llmos("tag", "base")` runs the command in this process, as the entry point would."""
    from llmos_cli import app

    def run(*args: object, stdin: str = "") -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO(stdin))
            patch.setattr("sys.argv", ["llmos", *map(str, args)])
            code = app.run([str(arg) for arg in args])
        return Ran(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def workspace(new_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An initialised workspace with a tiny causal-lm config; the current folder is its root."""
    workspace = new_workspace(tmp_path / "workspace")
    monkeypatch.chdir(workspace.root)
    return workspace


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, one for all workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def new_workspace(of_all_workers: Path) -> Callable[..., Workspace]:
    """`new_workspace(directory, "image-classification")` makes a workspace with that template's tiny config, and with what is
    derived from its data: that costs more than most tests, and is the same for all."""

    def make(directory: Path, template: str = "causal-lm") -> Workspace:
        made = _new_workspace(directory, template)
        shutil.copytree(_derived(of_all_workers / f"derived-{template}", template), made.cache, dirs_exist_ok=True)
        return made

    return make


def _new_workspace(directory: Path, template: str) -> Workspace:
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.operations.init import init

    init(directory, template)
    (directory / "configs" / "train.yaml").write_text(TINY[template])
    return Workspace.find(directory)


def _derived(place: Path, template: str) -> Path:
    """The cache of a workspace that has prepared the data of the template's tiny config; made by the first who asks."""
    from llmos_cli.operations.config import resolve
    from llmos_cli.operations.training.start import start

    place.parent.mkdir(exist_ok=True)
    with (place.with_suffix(".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            made = _new_workspace(place.with_suffix(".making"), template)
            start(made, None, resolve(made, "train").config)
            made.cache.rename(place)
    return place


TINY = {
    "causal-lm": """\
seed: 0
model: {arch: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
data: {task: causal-lm, source: "builtin:pydoc", sequence_length: 32, max_samples: 64, max_eval_samples: 8, tokenizer: {vocab_size: 300}}
train: {max_steps: 4, batch_size: 4}
""",
    "image-classification": """\
seed: 0
model: {arch: cnn}
data: {task: image-classification, source: "builtin:digits", max_samples: 128, max_eval_samples: 64}
train: {max_steps: 4, batch_size: 16}
""",
    "text-classification": """\
seed: 0
model: {arch: bert, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
data: {task: text-classification, source: "builtin:docstrings", sequence_length: 32, max_samples: 64, max_eval_samples: 32, tokenizer: {vocab_size: 300}}
train: {max_steps: 4, batch_size: 8}
""",
    "token-classification": """\
seed: 0
model: {arch: bert, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
data: {task: token-classification, source: "builtin:pytokens", sequence_length: 32, max_samples: 64, max_eval_samples: 32, tokenizer: {vocab_size: 300}}
train: {max_steps: 4, batch_size: 8}
""",
}
"""Configs that train in a second or two: what a test checks is never how good a model is."""


LONGEST_FIRST = (
    "test_story",
    "test_tune",
    "test_deploy",
    "test_compress",
    "test_structured",
    "test_train",
    "test_http",
    "test_bad_input",
)
"""Files that take a minute or so: begun first, so that no worker is left alone with one of them at the end."""


gc.disable()  # while tests are collected: what is imported stays, and looking through it again and again is a third of the time


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="Rewrite the transcripts of tests/golden/ as they are now."
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report: Any = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(allowed in reason for allowed in SKIPS_ALLOWED):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: this skip is not in SKIPS_ALLOWED of tests/conftest.py: {reason}"
    return report
