"""Ray Train's own records: a folder in the workspace, which it requires, and whose content is not used."""

import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from edlm.file_systems import file_system
from edlm.storage import discard, join

FOLDER = "ray"


def ray_records(workspace: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Return Ray's `storage_path` and `storage_filesystem` (None: this machine's) for its records of a training.

    Ray reaches every store by the client that checkpoints are written with, and so with the same settings: its own are
    others, and there is none for az://.
    """
    system, path = file_system(join(workspace, FOLDER))
    if isinstance(system, LocalFileSystem):
        return path, None
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(system))


def discard_ray_records(workspace: str) -> None:
    discard(join(workspace, FOLDER))
