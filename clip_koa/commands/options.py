"""Options that several commands share."""

from typing import Annotated

from typer import Option

DataDir = Annotated[
    str | None, Option("--data_dir", help="Folder of knee X-rays (default: the environment's KNEE_XRAY_DIR).")
]
Split = Annotated[str, Option(help="validation, test, auto_test or train.")]
