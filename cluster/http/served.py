"""The model that a request is answered with: its generator, and the name, version and digest that the answer gives."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from cluster.http.pieces import Pieces
from cluster.http.refusal import Refused
from edlm.config import plain
from edlm.continuous import Model as EngineModel
from edlm.generator import TextGenerator
from edlm.tempering import tempered

Value = TypeVar("Value")
TEMPERATURES = 64  # that are kept; each is a few hundred small objects, and no weight


@dataclass(frozen=True)
class Served:
    """One model, as the engine knows it."""

    model: EngineModel

    @property
    def generator(self) -> TextGenerator:
        return self.model.generator

    @property
    def fingerprint(self) -> str:
        """version/digest"""
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
    def pieces(self) -> Pieces:
        return Pieces(self.generator.tokenizer)

    def at(self, temperature: float) -> "Served":
        """The same model at a temperature of its tokens."""
        return self if temperature == 1 else self._views(temperature)

    @cached_property
    def _views(self) -> Callable[[float], "Served"]:
        """Kept, so that texts of one temperature share their passes; those of two do not."""
        model = self.model  # not self: what is kept would keep itself

        @lru_cache(TEMPERATURES)
        def view(temperature: float) -> Served:
            return Served(replace(model, generator=tempered(model.generator, temperature)))

        return view

    @property
    def facts(self) -> dict[str, Any]:
        """What /v1/models tells of it."""
        return {
            "model_version": self.version,
            "digest": self.digest,
            "length": self.generator.length,
            "mask": self.generator.mask,
            "separator": self.generator.tokenizer.separator,
            "energies": list(self.generator.energies),
            "energy": self.generator.bundle.energy,
            "sampler": plain(self.generator.bundle.sampler),
        }

    def require_named(self, name: str | None) -> None:
        """Refused where a request asks for another model."""
        if name not in (None, self.name):
            raise Refused(404, f"no model {name!r}; this server has {self.name!r}", "model", "model_not_found")


def or_refuse(param: str | None, check: Callable[..., Value], *arguments: Any) -> Value:
    """`check(*arguments)`, whose ValueError is the client's mistake, in the field `param` if in one."""
    try:
        return check(*arguments)
    except ValueError as error:
        raise Refused(400, str(error), param, "invalid_value") from None
