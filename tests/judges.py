"""Judges whose every probability is known, for tests of what is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import Characters
from edlm.evaluation.judge_models import Judge, Retokenizer

CHARACTERS = Characters().build([])
FOLLOWED = 10  # tokens that must agree before `Copying` expects the rest to


@dataclass(frozen=True)
class Bigram:
    """log p(token | the one before) from a table [v + 1, v], the last row for the start token v.

    Features: the token, and how many tokens of the window stand before it.
    """

    log_p: Tensor

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.arange(tokens.shape[1]).expand_as(tokens)
        return self.log_p[tokens[:, :-1], tokens[:, 1:]], torch.stack([tokens, before], dim=-1).double()


@dataclass(frozen=True)
class Copying:
    """A bigram model that also notices repetition: where the last ten tokens were read before, it expects what came
    then, and is right or pays for it. Features: how often the text so far held each token."""

    log_p: Tensor

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        log_p = self.log_p[tokens[:, :-1], tokens[:, 1:]].clone()
        for row, ids in enumerate(tokens.tolist()):
            followed: dict[tuple[int, ...], int] = {}
            for at in range(FOLLOWED, len(ids)):
                recent = tuple(ids[at - FOLLOWED : at])
                if recent in followed:
                    copied = 0.98 * (followed[recent] == ids[at])
                    log_p[row, at - 1] = torch.log(copied + 0.02 * log_p[row, at - 1].exp())
                followed[recent] = ids[at]
        held = torch.nn.functional.one_hot(tokens, len(self.log_p)).double().cumsum(dim=1)
        return log_p, held / held.sum(dim=-1, keepdim=True)


def learnt(texts: Tensor, vocabulary: int) -> Tensor:
    """The bigram table of `texts`, every pair seen once more than it was."""
    counts = torch.ones(vocabulary + 1, vocabulary, dtype=torch.float64)
    start = torch.full_like(texts[:, :1], vocabulary)
    pairs = torch.cat([start, texts], dim=1).unfold(1, 2, 1).flatten(0, 1)
    counts.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs), dtype=torch.float64), accumulate=True)
    return (counts / counts.sum(dim=1, keepdim=True)).log()


def random_bigram(vocabulary: int, seed: int = 0) -> Bigram:
    generator = torch.Generator().manual_seed(seed)
    return Bigram(torch.randn(vocabulary + 1, vocabulary, generator=generator, dtype=torch.float64).log_softmax(dim=1))


def judged_by(
    network,
    tokenizer: Tokenizer = CHARACTERS,
    context: int = 1024,
    spelling: Retokenizer | None = None,
    start: bool = True,
    name: str = "exact",
) -> Judge:
    """The judge whose start token is the network's last row."""
    return Judge(name, network, tokenizer, context, len(network.log_p) - 1 if start else None, spelling)


def written(texts: Sequence[str], tokenizer: Tokenizer = CHARACTERS) -> Tensor:
    """Texts of equal length as ids [b l]."""
    return torch.stack([torch.from_numpy(tokenizer.encode(text)).long() for text in texts])
