"""Plan of one call of a language model: how its texts are generated, and their running sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

from edlm.config import ConfigurationError
from edlm.constraints.specification import AbstractSpecification
from edlm.inference.arguments import integer, short
from edlm.inference.generator import TextGenerator
from edlm.inference.request import Request
from edlm.inference.sequence import RunningSequence
from edlm.inference.settings import ResolvedSettings
from edlm.inference.token_distribution import TokenDistribution
from edlm.inference.token_temperature import temperature_given_constraint, tempered


@dataclass(frozen=True)
class CallPlan:
    """Model with the distribution of its tokens, settings and seeds of one call."""

    generator: TextGenerator
    settings: ResolvedSettings
    distribution: TokenDistribution
    seed: int
    seeds: list[int]

    def sequences(
        self,
        known: Sequence[int | None],
        max_tokens: int | None,
        stop: tuple[str, ...] = (),
        constraint: AbstractSpecification | None = None,
        logprobs: int | None = None,
    ) -> list[RunningSequence]:
        """Return one sequence per seed: a continuation of `known`, or with `max_tokens` None an infill of its gaps.

        Raise ValueError if the model cannot generate it.
        """
        if constraint is not None and not isinstance(constraint, AbstractSpecification):
            raise ConfigurationError(
                f"constraint is {short(constraint)}; give edlm.Regex, edlm.OneOf or edlm.JsonSchema"
            )
        if constraint is not None and self.distribution.is_truncated:
            raise ConfigurationError("top_k and top_p may leave no token that a constraint allows; leave them out")
        sampler, energy, generator = self.settings.sampler, self.settings.energy, self.generator
        if constraint is not None and self.distribution.temperature == 0:
            generator = tempered(generator, temperature_given_constraint(0))
        recorded = None if logprobs is None else integer("logprobs", logprobs, least=0)
        requests = [
            Request(
                tuple(known), max_tokens, seed, sampler, energy, stop=stop, logprobs=recorded, constraint=constraint
            )
            for seed in self.seeds
        ]
        return [RunningSequence(request, generator) for request in requests]
