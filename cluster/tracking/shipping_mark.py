"""Mark of an upload: how much of a journal MLflow has, kept beside the journal."""

import json
import logging
import zlib
from pathlib import Path

from cluster.tracking.journal import CHECKSUM_BYTES, ENTRIES, complete_bytes, sync
from edlm.storage import read_text, write_text

RECORDS_MARK, FILES_MARK = "records", "files"
log = logging.getLogger(__name__)


class ShippingMark:
    """Number of journal bytes that an upload is done with. It moves only over entries that are on disk.

    A mark that is missing, torn, or at no end of a line of the journal is 0: everything is sent again, which changes
    nothing that MLflow has.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / f"shipped-{name}.json"
        self.position = self._read()

    def move(self, position: int) -> None:
        """Move to the end of a line of the journal."""
        if position != self.position:
            sync(self._folder)
            write_text(str(self._path), json.dumps({"bytes": position, "ending": self._ending(position)}))
            self.position = position

    def _read(self) -> int:
        try:
            text = read_text(str(self._path))
        except FileNotFoundError:
            return 0
        try:
            mark = json.loads(text)
            position, ending = int(mark["bytes"]), int(mark["ending"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged; what the journal holds is sent again, nothing twice", self._path)
            return 0
        if self._ending(position) != ending:
            log.warning("%s does not fit the journal beside it, all of which is sent again, nothing twice", self._path)
            return 0
        return position

    def _ending(self, position: int) -> int:
        """Return a checksum of the bytes before `position`, which include the checksum of the line that ends there."""
        with (self._folder / ENTRIES).open("rb") as file:
            file.seek(max(0, position - CHECKSUM_BYTES))
            return zlib.crc32(file.read(min(position, CHECKSUM_BYTES)))


def unsent_bytes(folder: Path) -> int:
    """Return how many bytes of the journal MLflow does not have, as far as the marks beside it say."""
    size = complete_bytes(folder)
    return size and size - min(ShippingMark(folder, name).position for name in (RECORDS_MARK, FILES_MARK))
