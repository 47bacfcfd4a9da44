"""Secrets taken out of what is logged, tracked or printed: configurations, URIs, messages and log records."""

import logging
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

HIDDEN = "***"

_SECRETS = {
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "credentials",
    "apikey",
    "authorization",
    "token",
    "signature",
    "sig",  # of Azure's signed URLs
}
_NO_SECRETS = {"token_temperature", "token_temperatures"}  # settings of samplers
_KEYS_OF_SECRETS = re.compile(r"(?:^|[^a-z])(?:api|access|private|signing|account)[^a-z]?key")
_USER_IN_URI = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_BY_NAME = re.compile(
    r"""(?<![\w.%-])(?P<name>[\w.%-]++)         # of a query's parameter, an environment variable or a JSON field
        (?P<between>=["']?|["']\s*:\s*["'])
        (?P<value>[^\s"'&;,#)>\]}]+)""",
    re.VERBOSE,
)
_BY_FORM = re.compile(
    r"""(?<![A-Za-z0-9])(?:
          (?:AKIA|ASIA)[A-Z0-9]{16}                # an access key's identity at AWS
        | hf_[A-Za-z0-9]{20,}                      # tokens of the Hugging Face hub
        | gh[opsru]_[A-Za-z0-9]{20,}               # ... of GitHub
        )(?![A-Za-z0-9])
      | (?<=bearer\ )[\w.~+/=-]{16,} | (?<=Bearer\ )[\w.~+/=-]{16,} | (?<=Basic\ )[\w+/=]{16,}
      | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)""",
    re.VERBOSE | re.DOTALL,
)


def redacted(tree: Any, key: str = "") -> Any:
    """Return `tree` with `***` for every value under a key that names a secret, and for secrets within its texts.

    Whole words of a key are matched (`hf_token`, `apiKey`): `tokenizer` and `tokens` are no secrets, and
    `token_temperatures` are settings of a sampler.
    """
    if names_secret(key) and tree is not None:
        return HIDDEN
    if isinstance(tree, Mapping):
        return {name: redacted(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return redacted_text(tree) if isinstance(tree, str) else tree


def redacted_text(text: str) -> str:
    """Return `text` without its secrets.

    These are user and password of a URI, values of query parameters, variables and JSON fields whose names are those of
    secrets, bearer tokens, and what is known by its form: keys of AWS, tokens of hubs, private keys.

    Examples:
        >>> redacted_text("s3://me:pw@bucket/x?X-Amz-Signature=0a1b&region=eu")
        's3://***@bucket/x?X-Amz-Signature=***&region=eu'
    """
    text = _BY_FORM.sub(HIDDEN, _USER_IN_URI.sub(HIDDEN, text))
    return _BY_NAME.sub(lambda found: _named(found), text)


def names_secret(key: str) -> bool:
    """Return whether a key, by one of its words, is that of a secret."""
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    if separated in _NO_SECRETS:
        return False
    words = re.split(r"[^a-z0-9]+", separated)
    return bool(_SECRETS.intersection(words)) or bool(_KEYS_OF_SECRETS.search(separated))


def redact_logs() -> None:
    """Redact every record that this process logs from now on, and the error that ends it or a thread of it.

    Tracebacks are included. For a process's entry point.
    """
    sys.excepthook = _print_error
    if threading.excepthook is threading.__excepthook__:  # another one, as a test runner's, prints nothing by itself
        threading.excepthook = _print_error_of_thread
    factory = logging.getLogRecordFactory()
    if isinstance(factory, _RedactingFactory):
        return
    logging.setLogRecordFactory(_RedactingFactory(factory))


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python prints, without secrets."""
    print(redacted_text("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)


def _print_error_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is SystemExit or ended.exc_value is None:
        return
    print(f"Exception in thread {ended.thread.name if ended.thread else None}:", file=sys.stderr)
    _print_error(ended.exc_type, ended.exc_value, ended.exc_traceback)


class _RedactingFactory:
    """Factory of log records without secrets."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._factory(*args, **kwargs)
        if isinstance(record.args, tuple):  # formatters of some libraries read them one by one
            record.args = tuple(redacted_text(arg) if isinstance(arg, str) else arg for arg in record.args)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            return record  # arguments that do not fit the format, which `logging` reports
        if (clean := redacted_text(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
            # A formatter takes this text instead of making its own.
            record.exc_text = redacted_text("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record


def _named(found: re.Match[str]) -> str:
    return f"{found['name']}{found['between']}{HIDDEN}" if names_secret(found["name"]) else found[0]
