"""Judges: autoregressive models, ours or made elsewhere, that read generated texts.

A judge of the generator's own tokens reads them as they are. Any other reads the text: tokens are decoded and written
again in the judge's tokens, so what it says is of the text, and it says so (`retokenised`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edlm.checkpoints.model_folder import digest, open_folder
from edlm.checkpoints.networks import open_autoregressive
from edlm.config import ConfigurationError, Positive, config
from edlm.data.tokenizer import Tokenizer, open_tokenizer
from edlm.evaluation.huggingface import open_causal_model
from edlm.models.autoregressive import AutoregressiveModel
from edlm.storage import local_copy

TOKENS_AT_ONCE = 2048  # a judge of 50,257 tokens then holds logits of 0.4 GB


class Network(Protocol):
    """log p(token | those before it) of every token but the first, and the last layer's features at every token."""

    def __call__(self, tokens: Int[Tensor, "b w"]) -> tuple[Float[Tensor, "b w-1"], Float[Tensor, "b w h"]]: ...


@dataclass(frozen=True)
class Spelling:
    """How a judge with tokens of its own writes a text: documents, `separator` between them, `end` after the last."""

    encode: Callable[[str], Sequence[int]]
    separator: tuple[int, ...] | None
    """None where the judge has no token for the end of a document."""
    end: tuple[int, ...] = ()

    def ids(self, documents: Sequence[str]) -> list[int]:
        """The judge's ids of a text; one that ends with a separator has ended, and gets no `end`."""
        if self.separator is None and len(documents) > 1:
            raise ValueError("a text holds several documents, and the judge has no end-of-text token to part them")
        ids = list(self.encode(documents[0]))
        for document in documents[1:]:
            ids += [*(self.separator or ()), *self.encode(document)]
        return ids + list(self.end) if documents[-1] else ids


@dataclass(frozen=True)
class Reading:
    """What a judge says of each of b texts."""

    nats: Float64[Tensor, " b"]
    """-log p(text), whole. A first token that is not scored counts as the mean of the others."""
    characters: Int64[Tensor, " b"]
    """Of the decoded text; a separator counts as one."""
    judge_tokens: Int64[Tensor, " b"]
    features: Float[Tensor, "b h"]
    """The last layer's features at the last token, the whole text (or the last context of it) read."""


@dataclass(frozen=True)
class Judge:
    """A network that reads texts written in the ids of `tokenizer`, which is the generator's."""

    name: str
    """Enough to find the same weights again."""
    network: Network
    tokenizer: Tokenizer
    context: int
    """Judge tokens, the start token among them, that are read at once."""
    start: int | None
    """The id in front of every text, after which its first token is scored too; None: the first is not scored."""
    spelling: Spelling | None = None
    """None: the judge's tokens are those of `tokenizer`."""
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigurationError(f"judge.context is {self.context}; a token and one before it are 2 at least")

    @property
    def retokenised(self) -> bool:
        return self.spelling is not None

    @torch.no_grad()
    def read(self, texts: Int[Tensor, "b l"], lengths: Int[Tensor, " b"] | None = None) -> Reading:
        """The reading of the first `lengths` tokens of each text (all of them by default).

        A text longer than the context is read in windows that begin every half context: a token beyond the first window
        is scored with at least half a context before it. Raises ValueError for tokens that the tokenizer does not know,
        masks left over among them, and for a text of which nothing can be scored.
        """
        self._require_tokens(texts)
        lengths = whole_texts(texts) if lengths is None else lengths
        rows = [row[:length] for row, length in zip(texts.tolist(), lengths.tolist(), strict=True)]
        documents = [self._documents(row) for row in rows]
        written = [
            row if self.spelling is None else self.spelling.ids(parts)
            for row, parts in zip(rows, documents, strict=True)
        ]
        given = [] if self.start is None else [self.start]
        nats, features = self._score([given + ids for ids in written])
        judge_tokens = torch.tensor([len(ids) for ids in written])
        scored = judge_tokens - (1 - len(given))
        characters = torch.tensor([sum(map(len, parts)) + len(parts) - 1 for parts in documents])
        return Reading(nats * judge_tokens / scored, characters, judge_tokens, features)

    def _score(self, sequences: list[list[int]]) -> tuple[Float64[Tensor, " b"], Float[Tensor, "b h"]]:
        for index, sequence in enumerate(sequences):
            if len(sequence) < 2:
                raise ValueError(
                    f"text {index} comes to {len(sequence)} tokens for the judge {self.name}, its start token "
                    "included; 2 are needed to score one of them"
                )
        windows = [w for text, sequence in enumerate(sequences) for w in _windows(text, len(sequence), self.context)]
        at_once = max(1, TOKENS_AT_ONCE // max(w.stop - w.start for w in windows))
        nats = torch.zeros(len(sequences), dtype=torch.float64)
        last: dict[int, Tensor] = {}
        for first in range(0, len(windows), at_once):
            chunk = windows[first : first + at_once]
            # Padding stands behind the text, where no causal network looks.
            tokens = pad_sequence([torch.tensor(sequences[w.text][w.start : w.stop]) for w in chunk], batch_first=True)
            log_p, features = self.network(tokens.to(self.device))
            for row, window in enumerate(chunk):
                new = slice(window.known - window.start - 1, window.stop - window.start - 1)
                nats[window.text] -= log_p[row, new].double().sum().cpu()
                # A copy: a view would keep the features of every token.
                last[window.text] = features[row, window.stop - window.start - 1].cpu().clone()
        return nats, torch.stack([last[text] for text in range(len(sequences))])

    def _documents(self, ids: list[int]) -> list[str]:
        """The text between separators."""
        parts: list[list[int]] = [[]]
        for index in ids:
            if index == self.tokenizer.separator:
                parts.append([])
            else:
                parts[-1].append(index)
        return [self.tokenizer.decode(part) for part in parts]

    def _require_tokens(self, texts: Int[Tensor, "b l"]) -> None:
        if texts.numel() == 0:
            raise ValueError(f"texts to judge have shape {tuple(texts.shape)}; give at least one text")
        low, high = int(texts.min()), int(texts.max())
        if low < 0 or high >= self.tokenizer.size:
            raise ValueError(
                f"token {low if low < 0 else high} is not in the texts' vocabulary of {self.tokenizer.size}; "
                "masks must be filled before a text is judged"
            )


@config
class OwnJudge:
    """An autoregressive model of ours; its texts begin after BOS, so the first token counts too."""

    kind: Literal["own"] = "own"
    uri: str | None = None
    """Its model folder, committed; None: the one that the judge stage trains."""

    def open(self, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> Judge:
        """The judge of texts in the ids of `tokenizer`; it retokenises them where its own tokenizer is another.

        Raises ValueError where the folder is damaged or holds something else.
        """
        if self.uri is None:
            raise ConfigurationError("judge.uri is not set, so there is no judge to open; name its model folder")
        folder = local_copy(self.uri)
        model, own = open_autoregressive(folder).to(device), open_tokenizer(folder)
        spelling = None
        if own.digest != tokenizer.digest:
            separator = (own.separator,) if own.separator is not None else tuple(own.encode(" ").tolist())
            spelling = Spelling(lambda text: own.encode(text).tolist(), separator)
        name, context = f"own {digest(folder)[:12]}", open_folder(folder).length + 1
        return Judge(name, _Own(model), tokenizer, context, model.bos, spelling, device)


@config
class HuggingFaceJudge:
    """A causal language model of the `transformers` library. It reads text: everything is retokenised for it.

    That holds where its vocabulary is the generator's, too: a generator may split a word as the judge never saw it.
    """

    kind: Literal["huggingface"] = "huggingface"
    name: str
    """A model's name on the Hugging Face hub, for example openai-community/gpt2-large, or a local folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the commit that was found stands in the results."""
    context: Positive | None = None
    """Tokens read at once, its start token among them; None: as many as the model has positions."""
    bos: bool = True
    """Begin every text after the judge's BOS (where it has none, its end-of-text token), so that the first token is
    scored too; without it the first token is read and not scored."""
    eos: bool = False
    """Score the judge's end-of-text token after every text, too. Texts cut from longer ones do not end there."""

    def open(self, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> Judge:
        """The judge of texts in the ids of `tokenizer`, float32.

        Raises ConfigurationError naming the field: no `transformers`, no such model, no safetensors, code of its
        makers, weights that do not fit, a network that is not causal, a context or special token that it lacks.
        """
        model = open_causal_model(self.name, self.revision, device)
        start = model.bos if model.bos is not None else model.eos
        if self.bos and start is None:
            raise ConfigurationError(f"judge.bos: {self.name} has no BOS and no end-of-text token; set judge.bos false")
        if self.eos and model.eos is None:
            raise ConfigurationError(f"judge.eos: {self.name} has no end-of-text token; set judge.eos false")
        end = () if model.eos is None else (model.eos,)
        spelling = Spelling(model.encode, end or None, end if self.eos else ())
        context = self.context or model.positions
        if context is None:
            raise ConfigurationError(f"judge.context: {self.name} does not say how many positions it has; set it")
        if model.positions is not None and context > model.positions:
            raise ConfigurationError(f"judge.context {context} is above the {model.positions} positions of {self.name}")
        return Judge(model.name, model, tokenizer, context, start if self.bos else None, spelling, device)


JudgeConfig = OwnJudge | HuggingFaceJudge


def first_documents(texts: Int[Tensor, "b l"], separator: int | None) -> Int64[Tensor, " b"]:
    """The `lengths` of the texts' first documents, their separator included: the rest of a row is then not judged."""
    if separator is None:
        return whole_texts(texts)
    ended = (texts == separator).cumsum(dim=1)
    return 1 + (ended == 0).sum(dim=1).clamp(max=texts.shape[1] - 1)


@dataclass(frozen=True)
class _Own:
    model: AutoregressiveModel

    def __call__(self, tokens: Int[Tensor, "b w"]) -> tuple[Float[Tensor, "b w-1"], Float[Tensor, "b w h"]]:
        features = self.model.transformer(self.model.embedding(tokens), torch.zeros(len(tokens), device=tokens.device))
        log_p = self.model.readout.log_p_of(features[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return log_p.unflatten(0, (len(tokens), -1)), features


@dataclass(frozen=True)
class _Window:
    """Positions start..stop-1 of a sequence; those below `known` are context only."""

    text: int
    start: int
    stop: int
    known: int


def _windows(text: int, length: int, context: int) -> Iterator[_Window]:
    start, known = 0, 1
    while known < length:
        stop = min(start + context, length)
        yield _Window(text, start, stop, known)
        start, known = start + context // 2, stop


def whole_texts(texts: Int[Tensor, "b l"]) -> Int64[Tensor, " b"]:
    """The `lengths` of texts that fill their rows."""
    return torch.full((len(texts),), texts.shape[1])
