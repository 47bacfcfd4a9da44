"""Model for `transformers`: a denoiser with its energies, and the k-candidate sampler that draws texts from them.

`flattening` turns this module into `modeling_edlm.py` of an exported repository: one file that imports torch and
transformers only. What is computed, and how, is the project's own code.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from edlm import equations
from edlm.energies.kinds import EnergyConfig
from edlm.energies.step import new_positions
from edlm.inference.canvas import canvas, checked, context_tokens
from edlm.inference.progress import document_end
from edlm.inference.settings import consecutive_seeds, overridden
from edlm.inference.stop_strings import cut
from edlm.interfaces import AbstractEnergy, Model, proposal_of
from edlm.models.autoregressive import TransformerAutoregressiveConfig
from edlm.models.denoiser import AbstractDenoiser, TransformerDenoiserConfig
from edlm.published.mdlm import MDLMDenoiserConfig
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import ScheduleConfig

ROWS = 16  # texts per pass of the denoiser
ExportedDenoiser = TransformerDenoiserConfig | MDLMDenoiserConfig


class EdlmConfig(PreTrainedConfig):
    """Networks, noise schedule and default sampler of a model, as config.json holds them."""

    model_type = "edlm"

    def __init__(
        self,
        vocab_size: int = 1,
        canvas_length: int = 1,
        separator_id: int | None = None,
        denoiser: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        energies: Mapping[str, Any] | None = None,
        energy: str | None = None,
        sampler: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocab_size = vocab_size  # tokens, without the mask
        self.mask_id = vocab_size
        self.canvas_length = canvas_length
        self.separator_id = separator_id
        self.denoiser = dict(denoiser or {})
        self.schedule = dict(schedule or {"kind": "log_linear"})
        self.energies = dict(energies or {})
        self.energy = energy
        self.sampler = dict(sampler or {"steps": 1})


class EdlmModel(PreTrainedModel):
    """Denoiser p_theta(x_0 | x_t) with its energies E(x_0, x_t, t), LOW where text is likely.

    Ids 0 to `config.vocab_size` - 1 are tokens, and `config.mask_id` is the mask.
    """

    config_class = EdlmConfig
    main_input_name = "input_ids"

    def __init__(self, config: EdlmConfig) -> None:
        super().__init__(config)
        self.denoiser: AbstractDenoiser = _of_kind(ExportedDenoiser, config.denoiser).build(config.vocab_size)
        self.energies = nn.ModuleDict(
            {name: _energy(settings, self.denoiser) for name, settings in config.energies.items()}
        )
        self.schedule = _of_kind(ScheduleConfig, config.schedule)
        self.sampler: Sampler = Sampler(**_tuples(config.sampler))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as the networks initialise them."""

    def forward(
        self,
        input_ids: Int[Tensor, "b l"],
        attention_mask: Int[Tensor, "b l"] | None = None,
        timesteps: Float[Tensor, " b"] | None = None,
    ) -> MaskedLMOutput:
        """Return the logits [b l v] of p_theta(x_0 | x_t) over the tokens, at every position as if it were masked.

        `timesteps`: the diffusion times in [0, 1], which a network with time conditioning needs. Raise ValueError for
        padding, on which the model was not trained.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("the model reads no padding: give rows of one length, with the mask where text is open")
        features = self.read(input_ids, timesteps)
        (logits,) = self.denoiser.readout.by_chunk(_itself, features.flatten(0, 1))
        return MaskedLMOutput(logits=logits.unflatten(0, input_ids.shape))

    def read(self, xt: Int[Tensor, "b l"], timesteps: Float[Tensor, " b"] | None = None) -> Float[Tensor, "b l h"]:
        """Return the denoiser's features of x_t, on which the light energies are built."""
        if timesteps is None:
            if self.config.denoiser.get("time_conditioning"):
                raise ValueError("this denoiser is conditioned on the diffusion time: give `timesteps`, in [0, 1]")
            timesteps = torch.ones(len(xt), device=xt.device)
        return self.denoiser.read(xt, timesteps)

    @torch.no_grad()
    def energy(
        self,
        name: str,
        x: Int[Tensor, "b k l"],
        xt: Int[Tensor, "b l"],
        timesteps: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k g"]:
        """Return E of k candidates per row by group of positions, in nats.

        The candidates of a row fill the same masked positions of x_t: for an energy of whole sequences all of them, for
        any other the ones that are scored; the others are masks in x, too. An energy in blocks has a group per block.
        Raise ValueError without `timesteps` for an energy, or a denoiser, with time conditioning.
        """
        network = self._named(name)
        if timesteps is None and self.config.energies[name]["energy"].get("time_conditioning"):
            raise ValueError(f"energy {name!r} is conditioned on the diffusion time: give `timesteps`, in [0, 1]")
        context, k = self.read(xt, timesteps), x.shape[1]
        new, x = new_positions(x, xt, self.denoiser.mask)
        if (proposal := proposal_of(network)) is not None:
            log_p = proposal.log_p(x, xt, context)[..., None]
        else:
            by_position = [self.denoiser.log_p_of(context, new, torch.where(new, x[:, j], 0)) for j in range(k)]
            log_p = equations.sum_by_group(torch.stack(by_position, dim=1), network.block)
        t = torch.ones(len(xt), device=xt.device) if timesteps is None else timesteps
        return network(x, xt, t, log_p, context)

    def generate(
        self,
        prompt: str = "",
        *,
        tokenizer: Any,
        seed: int,
        n: int = 1,
        max_tokens: int = 16,
        stop: Sequence[str] = (),
        steps: int | None = None,
        candidates: int | None = None,
        energy: str | None = None,
        window: tuple[float, float] | None = None,
        energy_temperature: float | None = None,
    ) -> list[str]:
        """Return `n` texts that follow the prompt, of at most `max_tokens` tokens each; text i has `seed` + i.

        None is the default of the exported model. `candidates`: k; 1 is plain diffusion, 0 draws exactly from a
        normalised energy. A text ends early where the model ends the document, or before the first of `stop`. Raise
        ValueError for a setting that the model cannot take.
        """
        known = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        given = {"steps": steps, "candidates": candidates, "window": window, "energy_temperature": energy_temperature}
        drawn = self.generate_tokens(known, max_tokens, consecutive_seeds(seed, n), energy=energy, **given)
        return [_cut(_added(tokenizer, known, tokens), stop) for tokens in drawn]

    @torch.no_grad()
    def generate_tokens(
        self,
        known: Sequence[int | None],
        max_tokens: int | None,
        seeds: Sequence[int],
        *,
        energy: str | None = None,
        **settings: Any,
    ) -> list[list[int]]:
        """Return, for each seed, the tokens after the prompt `known`, or `known` with its gaps filled.

        `max_tokens`: most tokens after the prompt; None: every None in `known` is a gap to fill. `settings` are those
        of `generate`. A text is a function of `known`, the settings and its own seed.
        """
        sampler = _checked(overridden(self.sampler, **settings))
        model = Model(self.denoiser, self._energy_for(sampler, energy), self.schedule)
        if max_tokens is None:
            if len(known) > self.config.canvas_length:
                raise ValueError(f"{len(known)} tokens do not fit the canvas of {self.config.canvas_length}")
            return [row for part in _parts(seeds) for row in self._filled([known] * len(part), 0, part, sampler, model)]
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; at least 1 is written")
        prompt = [checked(_known(token), self.denoiser.mask) for token in known]
        return [row for part in _parts(seeds) for row in self._written(prompt, max_tokens, part, sampler, model)]

    def _written(
        self, prompt: list[int], max_tokens: int, seeds: Sequence[int], sampler: Sampler, model: Model
    ) -> list[list[int]]:
        """Write the texts canvas by canvas; each canvas begins with as much of the text before it as fits."""
        length, separator = self.config.canvas_length, self.config.separator_id
        texts: list[list[int]] = [[] for _ in seeds]
        block = start = 0
        running = list(range(len(seeds)))
        while running and start < max_tokens:
            context = context_tokens(len(prompt) + start, max_tokens - start, length)
            new = min(max_tokens - start, length - context)
            before = [[*prompt, *texts[row]][len(prompt) + start - context :] for row in running]
            rows = [[*tokens, *[None] * new] for tokens in before]
            filled = self._filled(rows, block, [seeds[row] for row in running], sampler, model)
            for row, tokens in zip(running, filled, strict=True):
                texts[row] += tokens[context:]
            running = [row for row in running if separator not in texts[row]]
            block, start = block + 1, start + new
        return [tokens[: document_end(tokens, self.denoiser.mask, separator)] for tokens in texts]

    def _filled(
        self,
        known: Sequence[Sequence[int | None]],
        block: int,
        seeds: Sequence[int],
        sampler: Sampler,
        model: Model,
    ) -> list[list[int]]:
        """Fill the gaps of the rows, which have one length, in one canvas each: T steps from t = 1 to 0.

        Raise FloatingPointError if logits or energies of a row are not numbers, or leave no candidate.
        """
        mask, device = self.denoiser.mask, self.device
        xt = torch.stack([canvas(row, self.config.canvas_length, mask) for row in known]).to(device)
        needed, given, rows = len(known[0]), xt != mask, len(known)
        times, seed = sampler.times().to(device), torch.tensor(list(seeds), device=device)
        for i in range(sampler.steps, 0, -1):
            if not (xt[:, :needed] == mask).any():
                break
            index = torch.full((rows,), block * sampler.steps + i, device=device)
            result = sampler.step(xt, times[i].expand(rows), times[i - 1].expand(rows), index, seed, model, given)
            broken = result.broken
            if result.energies is not None:
                broken = broken | (result.energies == torch.inf).all(dim=1).any(dim=1)
            if broken.any():
                failed = [seeds[row] for row in torch.nonzero(broken)[:, 0].tolist()]
                raise FloatingPointError(f"logits or energies of the seeds {failed} are not numbers, or infinite")
            xt = result.xs
        return xt[:, :needed].tolist()

    def _energy_for(self, sampler: Sampler, name: str | None) -> AbstractEnergy | None:
        """Return the energy that scores the candidates; None if there is a single one."""
        name = name or self.config.energy
        energy = None if name is None else self._named(name)
        if sampler.candidates == 1:
            return None
        if energy is None:
            raise ValueError(f"candidates is {sampler.candidates}, and this model has no energy to choose with; give 1")
        if sampler.candidates == EXACT and not energy.normalised:
            raise ValueError(f"candidates is 0 (exact), and energy {name!r} is not normalised; give 1 or more")
        return energy

    def _named(self, name: str) -> AbstractEnergy:
        if name not in self.energies:
            raise ValueError(f"energy {name!r} is not in this model; it has: {', '.join(self.energies) or 'none'}")
        energy = self.energies[name]
        assert isinstance(energy, AbstractEnergy)
        return energy


def _energy(settings: Mapping[str, Any], denoiser: AbstractDenoiser) -> AbstractEnergy:
    """Build an energy on the denoiser, and on the autoregressive model or the other energy that it needs."""
    base: nn.Module | None = None
    if settings.get("autoregressive") is not None:
        base = TransformerAutoregressiveConfig(**settings["autoregressive"]).build(denoiser.vocabulary)
    elif settings.get("base") is not None:
        base = _energy(settings["base"], denoiser)
    return _of_kind(EnergyConfig, settings["energy"]).build(denoiser, base)


def _of_kind(union: Any, settings: Mapping[str, Any]) -> Any:
    """Return the settings as the class of their kind, which is one of the union's."""
    kinds = {one.kind: one for one in get_args(union)}
    return kinds[settings["kind"]](**_tuples(settings))


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings read from JSON with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def _parts(seeds: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(seeds), ROWS):
        yield seeds[start : start + ROWS]


def _checked(sampler: Sampler) -> Sampler:
    """Return the sampler. Raise ValueError for values that no sampler has."""
    if sampler.steps < 1 or sampler.candidates < 0 or not sampler.energy_temperature > 0:
        raise ValueError(f"steps is at least 1, candidates at least 0, energy_temperature above 0; got {sampler}")
    return sampler


def _known(token: int | None) -> int:
    if token is None:
        raise ValueError("a prompt has no gaps; to fill them, leave max_tokens out")
    return token


def _itself(logits: Tensor) -> tuple[Tensor]:
    return (logits,)


def _added(tokenizer: Any, before: list[int], tokens: list[int]) -> str:
    """Return the text that `tokens` add to the text of the tokens before them."""
    whole, start = tokenizer.decode([*before, *tokens]), tokenizer.decode(before)
    pairs = enumerate(zip(whole, start, strict=False))
    return whole[next((i for i, (new, old) in pairs if new != old), min(len(whole), len(start))) :]


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: cut(text, stop)]
