"""Write what a checkpoint says of each row of a file."""

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, Sets, session


def predict(
    rev: Annotated[str, typer.Argument(metavar="REV", help="The checkpoint that predicts.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="csv, json(l), parquet, text, CoNLL, image folder or URL.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="JSON lines; stdout when absent.")
    ] = None,
    sets: Sets = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        s.will_write(output)
        resolved = s.resolve("eval", sets=sets)

        from llmos_cli.operations.predict import predict as operation

        s.ui.show(operation(s.workspace, rev, file, resolved, out=output, emit=s.ui.emit))
