"""Whether compiling repays: the time it saves against the time it takes."""

from __future__ import annotations

from llmos_cli.models.compiling import possible
from llmos_cli.operations.training.compiling import repays


def test_compiling_repays_on_long_runs_only_and_later_where_lengths_vary() -> None:
    assert not repays(60)
    assert repays(200) is possible()
    assert not repays(200, lengths_vary=True)
    assert repays(400, lengths_vary=True) is possible()
