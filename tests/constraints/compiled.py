"""Tokenizers, and texts that are drawn from what a constraint was compiled to."""

import torch

from edlm.constraints.automaton import TokenAutomaton
from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.cooperative_work import run_to_end
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters
from edlm.sampling.constrained import constrained_posterior

BYTES, CHARACTERS = Bytes().build([]), Characters().build([])
WORDS = BPE(size=290).build(["the cat sat on the mat, 2024-05-17 and a naïve café: 日本 (0.25) " * 4])


class NearlyUniform:
    """A denoiser for which every token is as likely as any other, but for a few that it knows by their number."""

    def __init__(self, vocabulary: int) -> None:
        self.mask, self.vocabulary = vocabulary, vocabulary

    def log_p(self, context, where):
        return torch.log_softmax(torch.arange(self.vocabulary).remainder(7).double() / 7, -1).expand(
            int(where.sum()), -1
        )


def texts_of(
    automaton: TokenAutomaton, tokenizer: Tokenizer, length: int, count: int = 12, ends: bool = False
) -> list[str]:
    """Texts of so many tokens that are drawn given the constraint; none if there are none of this length."""
    if not automaton.accepting_after(length)[automaton.start]:
        return []
    u = torch.rand(2, 1, count, length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    xt, denoiser = torch.full((1, length), tokenizer.size), NearlyUniform(tokenizer.size)
    chosen = RowConstraints([Constraint(automaton)])
    posterior = run_to_end(constrained_posterior(denoiser, torch.zeros(1), xt, chosen, u[0]))
    drawn = posterior.draw(u[1])[0][0].tolist()
    if ends:
        drawn = [
            tokens[: tokens.index(tokenizer.separator)] if tokenizer.separator in tokens else tokens for tokens in drawn
        ]
    return [tokenizer.decode(tokens) for tokens in drawn]


def accepted(automaton: TokenAutomaton, tokenizer: Tokenizer, text: str) -> bool:
    return automaton.accepts(tokenizer.encode(text).tolist())
