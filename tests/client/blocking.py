"""The asynchronous client, driven by a test that waits: what is said of one client is said of both."""

import asyncio
from collections.abc import Iterator
from typing import Any

from edlm.client import AsyncClient, AsyncStream


class BlockingClient:
    """An AsyncClient whose methods return when they are done."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **settings)

    def __getattr__(self, name: str) -> Any:
        def method(*arguments: Any, **fields: Any) -> Any:
            result = getattr(self._client, name)(*arguments, **fields)
            if isinstance(result, AsyncStream):
                return BlockingStream(self._runner, result)
            return self._runner.run(result)

        return method

    def __enter__(self) -> "BlockingClient":
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.__aexit__())
        self._runner.close()


class BlockingStream:
    """An AsyncStream that is entered at once, as `Stream` is."""

    def __init__(self, runner: asyncio.Runner, stream: AsyncStream) -> None:
        self._runner, self._stream = runner, stream
        runner.run(stream.__aenter__())

    def __enter__(self) -> "BlockingStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._stream.__aexit__())

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._runner.run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None
