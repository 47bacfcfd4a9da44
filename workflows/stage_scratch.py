"""Scratch folder of a stage, in which its output is made.

What a stage makes is as large as its output: where that is on a local disk, so is the scratch folder, beside it, and
the files need not be copied. Where it is in a store, the folder is in the folder for temporary files.
"""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edlm.scratch import scratch
from edlm.storage import StorageError, local_path
from edlm.storage_errors import is_full

PREFIX = "edlm-stage-"


@contextmanager
def stage_scratch(output: str) -> Iterator[Path]:
    """Yield a new folder for what becomes `output`, a URI; those of dead processes are removed first (`scratch`).

    Only the holder of the lease on an output may call it: of its output, a sweep takes the folders of any machine, of
    others those of this one alone, because not every shared disk shares locks. Raise StorageError if the folder for
    temporary files is full.
    """
    target = local_path(output)
    base = Path(tempfile.gettempdir()) if target is None else target.parent
    base.mkdir(parents=True, exist_ok=True)
    name, here = output.rstrip("/").rpartition("/")[2], f"-{socket.gethostname()}-"

    def swept(folder: str) -> bool:
        return target is None or folder.startswith(f"{PREFIX}{name}-") or here in folder

    with scratch(base, PREFIX, f"{name}{here}", swept) as folder:
        try:
            yield folder
        except OSError as error:
            if target is None and is_full(error) and str(base) in (error.filename or str(base)):
                raise StorageError(
                    f"{base} is full ({error.strerror}); what a stage makes is there until it is in the store: make "
                    "room, or set TMPDIR to a folder on a larger disk"
                ) from error
            raise
