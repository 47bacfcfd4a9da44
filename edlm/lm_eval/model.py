"""The model `edlm` of lm-evaluation-harness: likelihoods by a named bound or exact, and generated texts."""

import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from edlm.config import ConfigurationError
from edlm.inference.canvas import context_tokens
from edlm.inference.generator import TextGenerator
from edlm.inference.loading import load
from edlm.inference.offline_generation import run_sequences
from edlm.inference.request import Request
from edlm.inference.results import described
from edlm.inference.sequence import RunningSequence
from edlm.inference.settings import consecutive_seeds, overridden, resolved
from edlm.inference.token_temperature import LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE, tempered
from edlm.lm_eval.arguments import GenerationSettings, generation_settings, model_arguments
from edlm.lm_eval.likelihood import LABELS, Pair, PairScore, PairScorer, encode_pair

log = logging.getLogger(__name__)
Info = dict[str, Any]


@register_model("edlm")
class EDLM(LM):
    """A registered model; `ModelArguments` describes its arguments.

    `get_model_info` adds to `config.edlm` of the harness's results which bound was used, with how many noise samples,
    its standard errors, and what did not fit a canvas. `scores` holds those of the latest call by request.
    """

    def __init__(self, **arguments: Any) -> None:
        """Raise ConfigurationError for arguments that are unknown, or that the model cannot follow."""
        super().__init__()
        self.arguments = given = model_arguments(arguments)
        self._device = _available(given.device)
        opened = load(given.uri, device=self._device)
        self.generator, self.version = opened.generator, opened.version
        sampler = overridden(
            self.generator.bundle.sampler,
            steps=given.steps,
            candidates=given.candidates,
            energy_temperature=given.energy_temperature,
        )
        self.sampler = sampler
        self.settings = resolved(self.generator, sampler, given.energy, 1.0)
        self.scorer = PairScorer(self.generator, self.settings, given.bound, given.draws, given.seed, given.batch_size)
        self.scores: list[PairScore] = []
        self._scored: list[PairScore] = []
        self._changed = self._generated = self._prompts_cut = 0
        self._temperatures: set[float] = set()

    @property
    def max_length(self) -> int:
        """Number of tokens of a canvas, which a context and its continuation share."""
        return self.generator.length

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return, per (context, continuation), minus the bound on -log p of the continuation, and whether it is greedy.

        The context is on the canvas from the start. Raise ConfigurationError for a continuation without tokens.
        """
        pairs = [encode_pair(self.generator.tokenizer, *request.args) for request in requests]
        return [(-score.nll.mean, score.greedy) for score in self._score(requests, pairs, disable_tqdm)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return, per text, minus the bound on -log p(text), canvas by canvas, each after half a canvas of context."""
        pairs = [Pair((), self.generator.read(request.args[0])) for request in requests]
        return [-score.nll.mean for score in self._score(requests, pairs, disable_tqdm)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return, per (context, settings), the text that follows, up to a stop string or the maximum number of tokens.

        Request i has the seed `seed` + i. Raise ConfigurationError for a generation setting that is not understood.
        """
        asked = [generation_settings(request.arguments[1], self.arguments) for request in requests]
        seeds = consecutive_seeds(self.arguments.seed, len(requests))
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="edlm: texts") as bar:
            by_temperature = sorted(range(len(requests)), key=lambda i: asked[i].temperature)
            for temperature, members in groupby(by_temperature, key=lambda i: asked[i].temperature):
                generator, group = self._at(temperature), list(members)
                for first in range(0, len(group), self.arguments.batch_size):
                    batch = group[first : first + self.arguments.batch_size]
                    contexts = [requests[i].args[0] for i in batch]
                    made = self._generate(generator, contexts, [asked[i] for i in batch], [seeds[i] for i in batch])
                    texts |= dict(zip(batch, made, strict=True))
                    bar.update(len(batch))
        return [texts[i] for i in range(len(requests))]

    def get_model_info(self) -> Info:
        """Return the facts that the harness adds to `config` of its results."""
        given = self.arguments
        info: Info = {
            "uri": given.uri,
            "model": self.generator.bundle.name,
            "version": self.version,
            "device": self._device,
            "canvas_tokens": self.max_length,
            "sampler": described(self.settings),
            "seed": given.seed,
        }
        if self._scored:
            errors = [score.standard_error for score in self._scored]
            info["likelihood"] = {
                "bound": given.bound,
                "meaning": LABELS[given.bound],
                "draws": None if given.bound == "exact_order" else given.draws,
                "texts": len(errors),
                "mean_standard_error_nats": sum(errors) / len(errors),
                "largest_standard_error_nats": max(errors),
                "contexts_cut": sum(score.cut for score in self._scored),
                "texts_of_several_canvases": sum(score.canvases > 1 for score in self._scored),
                "texts_changed_by_tokenizer": self._changed,
            }
        if self._generated:
            info["generation"] = {
                "texts": self._generated,
                "temperatures": sorted(self._temperatures),
                "contexts_cut": self._prompts_cut,
            }
        return {"edlm": info}

    def _score(self, requests: Sequence[Instance], pairs: Sequence[Pair], disable_tqdm: bool) -> list[PairScore]:
        for request, pair in zip(requests, pairs, strict=True):
            text = "".join(request.args)
            if not pair.text:
                raise ConfigurationError(
                    f"{request.args[-1]!r} has no token of this model, so it has no likelihood; its tokenizer reads "
                    f"{text!r} as {self.generator.tokenizer.decode((*pair.context, *pair.text))!r}"
                )
            self._changed += self.generator.tokenizer.decode((*pair.context, *pair.text)) != text
        with tqdm(disable=disable_tqdm, desc="edlm: canvases") as bar:
            self.scores = self.scorer.score(pairs, bar.update)
        self._scored += self.scores
        if cut := sum(score.cut for score in self.scores):
            log.warning(
                "%d of %d contexts do not fit the canvas of %d tokens: of these, only the end was read",
                cut, len(pairs), self.max_length,
            )  # fmt: skip
        return self.scores

    def _at(self, temperature: float) -> TextGenerator:
        low, high = LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE
        if temperature != 0 and not low <= temperature <= high:
            raise ConfigurationError(f"temperature is {temperature:g}; give 0, or {low:g} to {high:g}")
        self._temperatures.add(temperature)
        return self.generator if temperature == 1 else tempered(self.generator, temperature)

    def _generate(
        self,
        generator: TextGenerator,
        contexts: Sequence[str],
        asked: Sequence[GenerationSettings],
        seeds: Sequence[int],
    ) -> list[str]:
        """Return the texts of one batch, all at the generator's temperature."""
        settings = resolved(generator, self.sampler, self.arguments.energy, asked[0].temperature)
        sequences = []
        for context, one, seed in zip(contexts, asked, seeds, strict=True):
            known = generator.read(context)
            self._prompts_cut += context_tokens(len(known), one.max_tokens, generator.length) < len(known)
            request = Request(known, one.max_tokens, seed, settings.sampler, settings.energy, stop=one.stop)
            sequences.append(RunningSequence(request, generator))
        for _ in run_sequences(sequences, rows=len(sequences)):
            pass
        self._generated += len(sequences)
        return [sequence.text().text for sequence in sequences]


def _available(device: str) -> str:
    """Return the device, or the CPU with a warning where there is no CUDA: the harness asks for it by default."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("there is no CUDA device here: the networks run on the CPU")
        return "cpu"
    return device
