"""Errors of storage: what a URI holds is wrong, its store is away, or refuses, or a disk is full."""

import errno


class StorageError(ValueError):
    """Error for a URI that does not hold what was published or may not be published to; the message says why."""


class StoreUnavailable(OSError):
    """Error for a store that did not answer for as long as it was asked; it may answer later."""


class StoreRefusal(OSError):
    """Error for a store that refuses the credentials, or has no such bucket: another request gives the same."""


def is_full(error: BaseException) -> bool:
    """Return whether a disk, or a user's share of it, has no space left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
