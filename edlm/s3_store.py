"""S3 stores: one that is away or busy is asked again, one that refuses says at once what to change.

Endpoint, region and credentials are boto's: the variables AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or the role of the machine.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from edlm.storage_errors import StoreRefusal, StoreUnavailable

PATIENCE_SECONDS = 300.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds between two attempts
ANSWER_SECONDS = 30.0  # for a request that carries nothing; a frozen server would be waited for without limit
SLOWEST_BYTES_PER_SECOND = 2**18
PART_BYTES = 2**24  # of an upload in parts, which needs no memory beyond some of them

MISSING_BUCKET = "NoSuchBucket"
NO_CREDENTIALS = (
    NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError, ProfileNotFound,
)  # fmt: skip
# SlowDown and ServiceUnavailable are 503; RequestTimeout is a 400 for a body that came too slowly.
TRANSIENT_STATUS = (429, 500, 502, 503, 504)
TRANSIENT_CODES = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling")
log = logging.getLogger(__name__)


class PatientS3(S3FileSystem):
    """S3 file system whose requests have a deadline each, and are repeated while the store is away or busy.

    A request is repeated for `patience_seconds` after its first failure, with growing pauses, and the log says so.
    Raises StoreUnavailable then, and StoreRefusal at once for credentials that are missing or refused and for a bucket
    that does not exist.
    """

    retries = 1  # those of s3fs are silent
    default_block_size = PART_BYTES

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS, **options: Any) -> None:
        self._patience_seconds = patience_seconds
        client = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 5,
            "read_timeout": ANSWER_SECONDS,
            # Some stores (rclone's) answer a range with the checksum of the whole object; our files have digests.
            "response_checksum_validation": "when_required",
        }
        # Listings are not kept: other processes write to the folders that this one lists.
        super().__init__(config_kwargs=client, use_listings_cache=False, **options)

    async def _call_s3(self, method: str, *arguments: Any, **parameters: Any) -> Any:
        base = super()
        place = f"{parameters.get('Bucket', '')}/{parameters.get('Key') or parameters.get('Prefix') or ''}"
        seconds = ANSWER_SECONDS + len(parameters.get("Body") or b"") / SLOWEST_BYTES_PER_SECOND
        return await self._persist(place, lambda: base._call_s3(method, *arguments, **parameters), seconds)

    call_s3 = sync_wrapper(_call_s3)  # which the files that it opens ask, too

    async def _lsdir(self, path: str, *arguments: Any, **options: Any) -> Any:
        base = super()  # which asks page by page, and not by `_call_s3`
        return await self._persist(path, lambda: base._lsdir(path, *arguments, **options), None)

    async def _cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        base = super()  # whose answers may break off while they are read
        return await self._persist(path, lambda: base._cat_file(path, *arguments, **options), None)

    async def _get_file(self, rpath: str, *arguments: Any, **options: Any) -> Any:
        base = super()
        return await self._persist(rpath, lambda: base._get_file(rpath, *arguments, **options), None)

    async def _persist(self, place: str, ask: Callable[[], Awaitable[Any]], seconds: float | None) -> Any:
        """Return the answer to a request, repeated while the store is away; each has `seconds` for its answer."""
        where, now = f"s3://{self._strip_protocol(place)}", asyncio.get_running_loop().time
        until, pause = math.inf, FIRST_PAUSE
        while True:
            try:
                answer = await asyncio.wait_for(ask(), seconds)
                if until < math.inf:
                    log.warning("%s answers again", where)
                return answer
            except (StoreUnavailable, StoreRefusal):
                raise  # of a request within this one
            except Exception as error:
                if (refusal := self._refusal(error, where)) is not None:
                    raise refusal from error
                if not is_transient(error):
                    raise
                cause = f"{type(error).__name__}: {error}" if str(error) else f"no answer within {seconds} s"
                until = min(until, now() + self._patience_seconds)
                if now() + pause > until:
                    raise StoreUnavailable(
                        f"{where} cannot be reached at {self._endpoint()} ({cause}); check the network and "
                        "AWS_ENDPOINT_URL, or try again later"
                    ) from error
                log.warning("%s: %s; next attempt in %.1f s", where, cause, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make nothing: objects need no folder, and the bucket is its owner's to make."""

    makedirs = sync_wrapper(_makedirs)

    async def _require_answer(self, path: str) -> None:
        """Ask for the first object below a path. Raise OSError if there is no answer, or a refusal."""
        bucket, key, _ = self.split_path(path)
        await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)

    require_answer = sync_wrapper(_require_answer)

    def _refusal(self, error: Exception, where: str) -> StoreRefusal | None:
        """Return what to say of an error that another attempt would meet again, and the user can mend."""
        if isinstance(error, NO_CREDENTIALS):
            return StoreRefusal(
                f"{where}: there are no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE"
            )
        answer = _answer_of(error)
        if answer is None:
            return None
        code, status = answer
        if code == MISSING_BUCKET:
            bucket = where.split("/")[2]
            return StoreRefusal(f"{where}: the bucket {bucket} does not exist at {self._endpoint()}; create it")
        if status in (401, 403):
            return StoreRefusal(
                f"{where}: {self._endpoint()} refuses this access ({code}); check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN or the profile, AWS_ENDPOINT_URL, and the rights of this "
                "user on the bucket"
            )
        return None

    def _endpoint(self) -> str:
        return "the endpoint" if self._s3 is None else self._s3.meta.endpoint_url


def is_transient(error: BaseException) -> bool:
    """Return whether a request that failed with this error may succeed later."""
    answer = _answer_of(error)
    if answer is not None:
        code, status = answer
        return status in TRANSIENT_STATUS or code in TRANSIENT_CODES
    if isinstance(error, HTTPClientError | BotoConnectionError | TimeoutError | ConnectionError):
        return True
    # Raised while an answer is read: of aiohttp, or by botocore for an answer that is no XML.
    return type(error).__module__.startswith(("aiohttp", "urllib3")) or type(error).__name__ == "ResponseParserError"


def _answer_of(error: BaseException) -> tuple[str, int] | None:
    """Return code and status of the store's answer; None if there was none. s3fs hides boto's error as the cause."""
    for found in (error, error.__cause__):
        if isinstance(found, ClientError):
            status = found.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return found.response.get("Error", {}).get("Code", "unknown"), int(status)
    return None
