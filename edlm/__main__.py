"""Watch a text being denoised in the terminal, by a model in this process or by a service.

python -m edlm "the " [--model FOLDER | --url http://127.0.0.1:8000] [--steps 16 ...]
"""

import contextlib
import io
import os
import sys
from collections.abc import Generator, Sequence
from typing import Annotated

import httpx
import tyro

from edlm.client import ServiceError
from edlm.config import NonNegative, Positive, config, from_flags
from edlm.terminal.frames import MASK, Frame, TextRequest, model_frames, service_frames
from edlm.terminal.screen import Lines, Screen, is_animated

KEY = "EDLM_API_KEY"
DEFAULT_MODEL = "edlm-tiny@champion"
INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended


@config
class Watch:
    """A text to generate; None stands for what is registered with the model."""

    prompt: Annotated[str, tyro.conf.Positional] = ""
    """Text to continue."""
    model: str | None = None
    """Folder or URI of a bundle, or NAME@ALIAS of a registered model; None: edlm-tiny@champion, or the service."""
    url: str | None = None
    """URL of a service to ask instead; a key is read from EDLM_API_KEY."""
    max_tokens: Positive = 60
    """Tokens to generate."""
    steps: Positive | None = None
    """Denoising steps."""
    candidates: NonNegative | None = None
    """Candidates per step: 1 is plain diffusion, 0 exact."""
    energy: str | None = None
    """Name of the energy that chooses."""
    seed: int | None = None
    """Seed of the text; None: drawn, and printed."""

    def __post_init__(self) -> None:
        if self.model is not None and self.url is not None:
            raise ValueError("give --model or --url: a model in this process, or a service")
        if self.model is self.url is None and self.prompt.startswith(("http://", "https://")):
            raise ValueError(f"the prompt is a URL; to ask the service there, give --url {self.prompt}")


def frames(watch: Watch) -> Generator[Frame, None, None]:
    """Yield the frames of the text, first the masks alone: loading a model takes seconds."""
    yield Frame(watch.prompt, MASK * watch.max_tokens, 0, watch.steps or 0, watch.max_tokens)
    asked = TextRequest(watch.prompt, watch.max_tokens, watch.steps, watch.candidates, watch.energy, watch.seed)
    if watch.url is not None:
        yield from service_frames(watch.url, os.environ.get(KEY), asked)
    else:
        yield from model_frames(watch.model or DEFAULT_MODEL, asked)


def main(arguments: Sequence[str]) -> None:
    """Show the text; end with status 1 and one line for what cannot be done, and with 130 after Ctrl-C."""
    watch = from_flags(Watch, arguments, __doc__ or "")
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # a terminal without UTF-8
    try:
        with contextlib.closing(frames(watch)) as states, (Screen if is_animated(out) else Lines)(out) as display:
            for frame in states:
                display.show(frame)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    except (ValueError, ServiceError, ConnectionError, httpx.InvalidURL) as error:
        raise SystemExit(f"edlm: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
