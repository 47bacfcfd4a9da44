"""Judges: autoregressive models, trained here or elsewhere, that score generated texts.

A judge with the generator's own tokens reads them as they are. Any other judge reads the text: tokens are decoded and
encoded again in the judge's tokens, so its score is of the text, and it is marked as `retokenised`.
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
from edlm.evaluation.huggingface_judge import open_causal_model
from edlm.local_copies import local_copy
from edlm.models.autoregressive import AbstractAutoregressiveModel

TOKENS_AT_ONCE = 2048  # 0.4 GB of logits for a vocabulary of 50,257 tokens


class Network(Protocol):
    """Callable that returns log p(token | preceding tokens) of all but the first token, and all last-layer features."""

    def __call__(self, tokens: Int[Tensor, "b w"]) -> tuple[Float[Tensor, "b w-1"], Float[Tensor, "b w h"]]: ...


@dataclass(frozen=True)
class Retokenizer:
    """Encoding of a text for a judge with its own tokens: `separator` between documents, `end` after the last."""

    encode: Callable[[str], Sequence[int]]
    separator: tuple[int, ...] | None
    """None if the judge has no end-of-document token."""
    end: tuple[int, ...] = ()

    def ids(self, documents: Sequence[str]) -> list[int]:
        """Return the judge's ids of a text; one that ends with a separator is complete and gets no `end`.

        Raise ValueError for several documents without a separator.
        """
        if self.separator is None and len(documents) > 1:
            raise ValueError("a text holds several documents, and the judge has no end-of-text token to part them")
        ids = list(self.encode(documents[0]))
        for document in documents[1:]:
            ids += [*(self.separator or ()), *self.encode(document)]
        return ids + list(self.end) if documents[-1] else ids


@dataclass(frozen=True)
class JudgedTexts:
    """A judge's scores of b texts."""

    nats: Float64[Tensor, " b"]
    """-log p of the whole text. A first token that is not scored counts as the mean of the others."""
    characters: Int64[Tensor, " b"]
    """Characters of the decoded text; a separator counts as one."""
    judge_tokens: Int64[Tensor, " b"]
    features: Float[Tensor, "b h"]
    """Last-layer features at the last token, computed from the whole text (or its last context)."""


@dataclass(frozen=True)
class Judge:
    """Network that scores texts given in the ids of `tokenizer`, which is the generator's."""

    name: str
    """Identifies the weights: enough to find the same ones again."""
    network: Network
    tokenizer: Tokenizer
    context: int
    """Judge tokens read at once, start token included."""
    start: int | None
    """Id prepended to every text, so that its first token is scored too; None: the first is not scored."""
    spelling: Retokenizer | None = None
    """None: the judge's tokens are those of `tokenizer`."""
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigurationError(f"judge.context is {self.context}; a token and one before it are 2 at least")

    @property
    def retokenised(self) -> bool:
        return self.spelling is not None

    @torch.no_grad()
    def read(self, texts: Int[Tensor, "b l"], lengths: Int[Tensor, " b"] | None = None) -> JudgedTexts:
        """Score the first `lengths` tokens of each text (all of them by default).

        A text longer than the context is read in windows that begin every half context: a token beyond the first window
        is scored with at least half a context before it. Raise ValueError for tokens that the tokenizer does not know,
        leftover masks included, and for a text of which nothing can be scored.
        """
        self._require_tokens(texts)
        lengths = whole_texts(texts) if lengths is None else lengths
        rows = [row[:length] for row, length in zip(texts.tolist(), lengths.tolist(), strict=True)]
        documents = [self._documents(row) for row in rows]
        encoded = [
            row if self.spelling is None else self.spelling.ids(parts)
            for row, parts in zip(rows, documents, strict=True)
        ]
        prefix = [] if self.start is None else [self.start]
        nats, features = self._score([prefix + ids for ids in encoded])
        judge_tokens = torch.tensor([len(ids) for ids in encoded])
        scored = judge_tokens - (1 - len(prefix))
        characters = torch.tensor([sum(map(len, parts)) + len(parts) - 1 for parts in documents])
        return JudgedTexts(nats * judge_tokens / scored, characters, judge_tokens, features)

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
            # Padding follows the text, so a causal network never sees it.
            tokens = pad_sequence([torch.tensor(sequences[w.text][w.start : w.stop]) for w in chunk], batch_first=True)
            log_p, features = self.network(tokens.to(self.device))
            for row, window in enumerate(chunk):
                new = slice(window.known - window.start - 1, window.stop - window.start - 1)
                nats[window.text] -= log_p[row, new].double().sum().cpu()
                # Clone: a view would keep the features of every token alive.
                last[window.text] = features[row, window.stop - window.start - 1].cpu().clone()
        return nats, torch.stack([last[text] for text in range(len(sequences))])

    def _documents(self, ids: list[int]) -> list[str]:
        """Decode the text between separators."""
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
class TrainedJudge:
    """An autoregressive model trained by this project; its texts begin after BOS, so the first token counts too."""

    kind: Literal["trained"] = "trained"
    uri: str | None = None
    """Committed model folder; None: the one that the judge stage trains."""

    def open(self, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> Judge:
        """Open the judge for texts in the ids of `tokenizer`; it retokenises them if its own tokenizer differs.

        Raise ValueError if the folder is damaged or holds another kind of model.
        """
        if self.uri is None:
            raise ConfigurationError("judge.uri is not set, so there is no judge to open; name its model folder")
        folder = local_copy(self.uri)
        model, own_tokenizer = open_autoregressive(folder).to(device), open_tokenizer(folder)
        spelling = None
        if own_tokenizer.digest != tokenizer.digest:
            separator = (
                (own_tokenizer.separator,)
                if own_tokenizer.separator is not None
                else tuple(own_tokenizer.encode(" ").tolist())
            )
            spelling = Retokenizer(lambda text: own_tokenizer.encode(text).tolist(), separator)
        name, context = f"trained {digest(folder)[:12]}", open_folder(folder).length + 1
        return Judge(name, _Own(model), tokenizer, context, model.bos, spelling, device)


@config
class HuggingFaceJudge:
    """A causal language model of the `transformers` library; every text is retokenised for it.

    This holds even if its vocabulary is the generator's: a generator may split a word as the judge never saw it.
    """

    kind: Literal["huggingface"] = "huggingface"
    name: str
    """Model name on the Hugging Face hub, for example openai-community/gpt2-large, or a local folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the resolved commit is recorded in the results."""
    context: Positive | None = None
    """Tokens read at once, start token included; None: as many as the model has positions."""
    bos: bool = True
    """Begin every text after the judge's BOS (its end-of-text token if it has none), so that the first token is scored
    too; otherwise the first token is read and not scored."""
    eos: bool = False
    """Also score the judge's end-of-text token after every text. Texts cut from longer ones do not end there."""

    def open(self, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> Judge:
        """Open the judge for texts in the ids of `tokenizer`, in float32.

        Raise ConfigurationError naming the field: no `transformers`, no such model, no safetensors, remote code,
        weights that do not fit, a network that is not causal, a context or special token that it lacks.
        """
        model = open_causal_model(self.name, self.revision, device)
        start = model.bos if model.bos is not None else model.eos
        if self.bos and start is None:
            raise ConfigurationError(f"judge.bos: {self.name} has no BOS and no end-of-text token; set judge.bos false")
        if self.eos and model.eos is None:
            raise ConfigurationError(f"judge.eos: {self.name} has no end-of-text token; set judge.eos false")
        end = () if model.eos is None else (model.eos,)
        spelling = Retokenizer(model.encode, end or None, end if self.eos else ())
        context = self.context or model.positions
        if context is None:
            raise ConfigurationError(f"judge.context: {self.name} does not say how many positions it has; set it")
        if model.positions is not None and context > model.positions:
            raise ConfigurationError(f"judge.context {context} is above the {model.positions} positions of {self.name}")
        return Judge(model.name, model, tokenizer, context, start if self.bos else None, spelling, device)


JudgeConfig = TrainedJudge | HuggingFaceJudge


def first_documents(texts: Int[Tensor, "b l"], separator: int | None) -> Int64[Tensor, " b"]:
    """Return the `lengths` of the texts' first documents, separator included: the rest of a row is not judged."""
    if separator is None:
        return whole_texts(texts)
    ended = (texts == separator).cumsum(dim=1)
    return 1 + (ended == 0).sum(dim=1).clamp(max=texts.shape[1] - 1)


@dataclass(frozen=True)
class _Own:
    model: AbstractAutoregressiveModel

    def __call__(self, tokens: Int[Tensor, "b w"]) -> tuple[Float[Tensor, "b w-1"], Float[Tensor, "b w h"]]:
        features = self.model.features(tokens)
        log_p = self.model.readout.log_p_of(features[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return log_p.unflatten(0, (len(tokens), -1)), features


@dataclass(frozen=True)
class _Window:
    """Positions start..stop-1 of a sequence; those below `known` serve only as context."""

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
    """Return the `lengths` of texts that fill their rows."""
    return torch.full((len(texts),), texts.shape[1])
