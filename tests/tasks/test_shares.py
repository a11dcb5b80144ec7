"""Metrics that are shares of one are said to be: whoever adds one to a task says whether it is."""

from __future__ import annotations

import pytest

from llmos_cli import tasks

UNBOUNDED = {"loss", "perplexity", "bits_per_byte"}


@pytest.mark.parametrize("name", tasks.names())
def test_every_metric_is_a_share_or_has_no_bound(name: str) -> None:
    task = tasks.load(name)
    assert task.shares == set(task.metric_names()) - UNBOUNDED
