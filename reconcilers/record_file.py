"""The small files in the runtime folder that say what is or what is wanted: one model each, as JSON.

Every look at a disk asks for several, of which mostly none is there. So their paths are text: to make a `Path` takes
longer than to hear from the kernel that there is no such file.
"""

import os
from typing import TypeVar

from pydantic import BaseModel

DRAFT = ".new"
"""What is being written ends so. An agent that is killed may leave one."""

Record = TypeVar("Record", bound=BaseModel)


def read(path: str, kind: type[Record]) -> Record | None:
    """What is written down; None where nothing is, or something else."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - see above
            return kind.model_validate_json(file.read())
    except (FileNotFoundError, ValueError):
        return None


def write(path: str, record: BaseModel) -> None:
    """Write a file that nobody sees half of (rename(2)); its folder must be there."""
    draft = path + DRAFT
    with open(draft, "wb") as file:  # noqa: PTH123 - see above
        file.write(record.model_dump_json().encode())
    os.rename(draft, path)  # noqa: PTH104 - see above
