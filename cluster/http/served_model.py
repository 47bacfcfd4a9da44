"""The model that serves a request: its generator, and the name, version and digest reported in the response."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from cluster.http.errors import APIError
from edlm.config import plain
from edlm.data.conversations import turns_of
from edlm.data.tokenizer import Tokenizer
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.generator import TextGenerator
from edlm.inference.generator import VersionedGenerator as EngineModel
from edlm.inference.token_temperature import tempered
from edlm.inference.token_truncation import truncated
from edlm.models.denoiser import Denoiser

Value = TypeVar("Value")
VIEWS = 64  # cached; each is a few hundred small objects, without weights


class TokenText:
    """Text that each token adds after the separator, including its leading space; U+FFFD for partial characters.

    Without a separator, the text of the token by itself.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = CompletionDecoder(tokenizer, [] if tokenizer.separator is None else [tokenizer.separator])
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._text.whole([token])
        return self._known[token]


@dataclass(frozen=True)
class ServedModel:
    """A model as held by the engine."""

    model: EngineModel

    @property
    def generator(self) -> TextGenerator:
        return self.model.generator

    @property
    def fingerprint(self) -> str:
        """`version/digest`."""
        return self.model.version

    @property
    def name(self) -> str:
        return self.generator.bundle.name

    @property
    def version(self) -> str:
        return self.fingerprint.partition("/")[0]

    @property
    def digest(self) -> str:
        return self.fingerprint.partition("/")[2]

    @cached_property
    def pieces(self) -> TokenText:
        return TokenText(self.generator.tokenizer)

    def at(self, temperature: float, top_k: int | None, top_p: float) -> "ServedModel":
        """Return this model at a token temperature, with truncated distributions of the tokens."""
        return self if (temperature, top_k, top_p) == (1, None, 1) else self._views(temperature, top_k, top_p)

    @cached_property
    def _views(self) -> Callable[[float, int | None, float], "ServedModel"]:
        """Cached views: texts of the same view share batches; texts of different views do not."""
        model = self.model  # not self: the cache would hold a reference to its own owner

        @lru_cache(VIEWS)
        def view(temperature: float, top_k: int | None, top_p: float) -> ServedModel:
            generator = truncated(tempered(model.generator, temperature), top_k, top_p)
            return ServedModel(replace(model, generator=generator))

        return view

    @property
    def facts(self) -> dict[str, Any]:
        """Description of the model for /v1/models."""
        network = self.generator.denoiser.network
        return {
            "model_version": self.version,
            "digest": self.digest,
            "length": self.generator.length,
            "mask": self.generator.mask,
            "separator": self.generator.tokenizer.separator,
            "energies": list(self.generator.energies),
            "energy": self.generator.bundle.energy,
            "sampler": plain(self.generator.bundle.sampler),
            "exact": [name for name, energy in self.generator.energies.items() if energy.normalised],
            "vocabulary": self.generator.tokenizer.size,
            "weights": sum(weight.numel() for weight in network.parameters()),
            "layers": len(network.transformer.layers) if isinstance(network, Denoiser) else None,
            "width": network.width,
            "data": None if self.generator.bundle.data is None else plain(self.generator.bundle.data),
        }

    def require_named(self, name: str | None) -> None:
        """Raise APIError if the request names another model."""
        if name not in (None, self.name):
            raise APIError(404, f"no model {name!r}; this server has {self.name!r}", "model", "model_not_found")

    def require_chat(self) -> None:
        """Raise APIError unless the model has a chat template."""
        if self.generator.denoiser.chat is None:
            raise APIError(
                404,
                f"{self.name!r} is no chat model: it was trained on no conversations and has no chat template; it "
                "completes text at /v1/completions",
                "model",
                "not_a_chat_model",
            )

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Return the tokens of a conversation up to the assistant's answer.

        Raise APIError for a model without a chat template, and for messages that the template cannot render.
        """
        self.require_chat()
        turns, chat = or_api_error("messages", turns_of, messages), self.generator.denoiser.chat
        assert chat is not None
        return tuple(or_api_error("messages", chat.prompt, self.generator.tokenizer, turns).tolist())


def or_api_error(param: str | None, check: Callable[..., Value], *arguments: Any) -> Value:
    """Return `check(*arguments)`; raise its ValueError as APIError (400) for the request field `param`, if given."""
    try:
        return check(*arguments)
    except ValueError as error:
        raise APIError(400, str(error), param, "invalid_value") from None
