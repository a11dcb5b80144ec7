"""What a search has made and measured, on disk: who asks again, in this process or in one that resumes the run, is told what was found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos_cli.core import atomic
from llmos_cli.core.listing import read_text

FACTS = "facts.json"


@dataclass(frozen=True)
class Page:
    """`folder`: the files that were made; `facts`: what was measured, plain JSON."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """Where a page keeps a checkpoint's files, and no others."""
        return self.folder / "model"


Make = Callable[[Page], Mapping[str, Any]]
"""Makes a page's files in its folder, and gives its facts."""


class Notebook:
    """`stage` gives empty folders on the same disk as `folder`: a page appears under its name complete, or not at all."""

    def __init__(self, folder: Path, stage: Callable[[], AbstractContextManager[Path]]) -> None:
        self.folder, self.stage = folder, stage

    def once(self, name: str, make: Make) -> Page:
        """The page of that name, made where there is none. Numbers come back to the bit."""
        place = self.folder / name
        if not place.is_dir():
            with self.stage() as fresh:
                facts = make(Page(fresh, {}))
                atomic.write_text(fresh / FACTS, json.dumps(dict(facts)))
                atomic.publish(fresh, place)
            shutil.rmtree(self.unfinished(name), ignore_errors=True)
        return Page(place, json.loads(read_text(place / FACTS)))

    def unfinished(self, name: str) -> Path:
        """Where the making of a page keeps how far it is; gone once the page is there."""
        return self.folder / "unfinished" / name
