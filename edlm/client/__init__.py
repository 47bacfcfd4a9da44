"""Client of a running service; imports nothing else from edlm."""

from edlm.client.async_client import AsyncClient, AsyncStream
from edlm.client.client import Client, Stream
from edlm.client.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    NotAllowed,
    ServerFailed,
    ServiceError,
    StreamLost,
    Unreachable,
)
from edlm.client.settings import Patience, Settings
from edlm.client.types import (
    Answer,
    Choice,
    Completion,
    Details,
    Ended,
    Infill,
    Infilled,
    ListedModel,
    Logprobs,
    Measured,
    Score,
    State,
    Tokens,
    Unmasked,
    Usage,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Busy",
    "Choice",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "Details",
    "Ended",
    "Infill",
    "Infilled",
    "InvalidRequest",
    "Measured",
    "ListedModel",
    "Logprobs",
    "NotAllowed",
    "Patience",
    "Unmasked",
    "Score",
    "ServerFailed",
    "ServiceError",
    "Settings",
    "State",
    "Stream",
    "StreamLost",
    "Tokens",
    "Unreachable",
    "Usage",
]
