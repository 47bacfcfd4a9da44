"""Check that the storage of an experiment answers, before anything is started that would wait for it."""

import threading

from edlm.file_systems import require_answer
from edlm.redaction import redacted
from edlm.storage_errors import StorageError, StoreRefusal, StoreUnavailable

ANSWER_SECONDS = 20.0


def require_storage(root: str) -> None:
    """Raise StorageError unless the storage at `root` answers within `ANSWER_SECONDS`; a path of this machine does."""
    if "://" not in root:
        return
    errors: list[Exception] = []

    def ask() -> None:
        try:
            require_answer(root)
        except Exception as error:  # clients of stores have exceptions of many classes
            errors.append(error)

    # In a thread that may be left behind: some clients wait for a frozen store without limit.
    asking = threading.Thread(target=ask, name="storage", daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    if asking.is_alive():
        raise StorageError(f"storage: {redacted(root)} does not answer within {ANSWER_SECONDS:g} s; try again later")
    if errors and isinstance(errors[0], StorageError | StoreUnavailable | StoreRefusal):
        raise errors[0]
    if errors:
        first = next(iter(str(errors[0]).strip().splitlines()), "")
        raise StorageError(
            f"storage: {redacted(root)} cannot be used ({type(errors[0]).__name__}: {first}); check the address, the "
            "network and the credentials"
        )
