"""The kinds of tokenizer that an experiment may name, each of which builds one from its settings or from text."""

import json
import re
from collections.abc import Iterable, Iterator
from string import ascii_letters
from typing import Annotated, Literal

import fsspec.core
import pydantic
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edlm.config import ConfigurationError, Positive, config
from edlm.data.separator import is_parted, parting, spelling
from edlm.data.tokenizer import FILE, Tokenizer

END_OF_TEXT = "<|endoftext|>"
ALPHABET = " abcdefghijklmnopqrstuvwxyz"
MOST_SYMBOLS = 4096  # a law over symbols holds a square matrix of them
# a to z, A to Z, then Chinese characters: 20,902 in a row, and no space or accent among them
SYMBOLS = (ascii_letters + "".join(map(chr, range(0x4E00, 0x9FA6))))[:MOST_SYMBOLS]
PIECE = 50_000  # characters of a text that BPE learns from at a time
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@config
class Characters:
    """text8's 27 characters: a to z and space.

    Accents are dropped, digits spelt out; every run of anything else becomes one space (Mahoney 2006).
    """

    kind: Literal["characters"] = "characters"

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer; it needs no `texts`."""
        rust = tokenizers.Tokenizer(_merging(ALPHABET))
        rust.normalizer = normalizers.Sequence(
            [
                normalizers.NFKD(),
                normalizers.StripAccents(),
                normalizers.Lowercase(),
                *[normalizers.Replace(str(digit), f" {word} ") for digit, word in enumerate(DIGITS)],
                normalizers.Replace(Regex("[^a-z]+"), " "),
            ]
        )
        rust.decoder = decoders.Fuse()
        return Tokenizer(rust.to_str())


@config
class Bytes:
    """The 256 bytes of UTF-8, each its own id, and a separator."""

    kind: Literal["bytes"] = "bytes"

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer; it needs no `texts`."""
        rust = tokenizers.Tokenizer(_merging(_byte_letters()))
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rust.decoder = decoders.ByteLevel()
        return separated(rust, END_OF_TEXT)


@config
class BPE:
    """Byte-level byte-pair encoding, trained on the train split (Sennrich 2016; Radford 2019)."""

    kind: Literal["bpe"] = "bpe"
    size: Positive
    """Tokens, the 256 bytes and the separator included."""
    sample: Positive = 100_000_000
    """Characters of the train split to learn from. In memory are their distinct words, with about 100 bytes for each
    of their characters: 40 MB for 8 million characters of English, but 800 MB where no word is repeated."""

    def __post_init__(self) -> None:
        if self.size < 257:
            raise ValueError(f"size {self.size} is below 257: the bytes and the separator alone need that many")

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer learnt from the first `sample` characters of `texts`.

        Raises ConfigurationError where they do not hold enough pairs for `size` tokens.
        """
        rust = tokenizers.Tokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        rust.train_from_iterator(_first(texts, self.sample), trainer)
        if (learnt := rust.get_vocab_size()) < self.size:
            raise ConfigurationError(
                f"tokenizer.size is {self.size}, but the train split holds pairs for {learnt} tokens only; "
                f"set it to {learnt} or less, or give more text"
            )
        return separated(rust, END_OF_TEXT)


@config
class Symbols:
    """The letters of a source (`edlm.data.synthetic`), each its own id, with nothing between documents."""

    kind: Literal["symbols"] = "symbols"
    size: Annotated[int, pydantic.Field(ge=2, le=MOST_SYMBOLS)]
    """The first so many of a to z, A to Z, and Chinese characters."""

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer; it needs no `texts`."""
        letters = {letter: index for index, letter in enumerate(SYMBOLS[: self.size])}
        # Words, not the merges of `_merging`: those would pass over an unknown letter in silence.
        rust = tokenizers.Tokenizer(models.WordLevel(letters, unk_token="no such symbol"))
        rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        rust.decoder = decoders.Fuse()
        return Tokenizer(rust.to_str())


@config
class HuggingFaceTokenizer:
    """A tokenizer made elsewhere, read as data: no code of its makers is run."""

    kind: Literal["huggingface"] = "huggingface"
    uri: str
    """A tokenizer.json, or a folder with a tokenizer.json or with vocab.json and merges.txt; any fsspec URI."""
    separator: str = END_OF_TEXT
    """The token of its vocabulary to put between documents, for example `</s>`; text must not be able to spell it."""

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer at `uri`; it needs no `texts`.

        Raises ConfigurationError where there is none, or where its vocabulary lacks the separator or text can spell it.
        """
        rust = self._read()
        if rust.token_to_id(self.separator) is None:
            raise ConfigurationError(
                f"tokenizer.separator {self.separator!r} is not in the vocabulary of {self.uri}; "
                f"its special tokens are: {_special(rust)}"
            )
        return separated(rust, self.separator)

    def _read(self) -> tokenizers.Tokenizer:
        text = _read_text(self.uri if self.uri.endswith(".json") else f"{self.uri.rstrip('/')}/{FILE}")
        if text is not None:
            try:
                return tokenizers.Tokenizer.from_str(text)
            except Exception as error:  # the library raises no narrower class
                raise ConfigurationError(f"tokenizer.uri {self.uri}: not a tokenizer.json ({error})") from error
        vocabulary = _read_text(f"{self.uri.rstrip('/')}/vocab.json")
        merges = _read_text(f"{self.uri.rstrip('/')}/merges.txt")
        if vocabulary is None or merges is None:
            raise ConfigurationError(
                f"tokenizer.uri {self.uri}: found no {FILE} and no vocab.json with merges.txt; check the path"
            )
        try:
            pairs = [_pair(line) for line in merges.splitlines() if line and not line.startswith("#version")]
            rust = tokenizers.Tokenizer(models.BPE(vocab=json.loads(vocabulary), merges=pairs))
        except Exception as error:  # the library raises no narrower class
            raise ConfigurationError(f"tokenizer.uri {self.uri}: damaged vocab.json or merges.txt ({error})") from error
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        return rust


TokenizerConfig = Characters | Bytes | BPE | Symbols | HuggingFaceTokenizer


def _merging(letters: Iterable[str]) -> models.BPE:
    """A model that knows single letters and no merges: the library's fastest way to one id a letter."""
    return models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])


def separated(rust: tokenizers.Tokenizer, separator: str) -> Tokenizer:
    """The tokenizer whose documents end with `separator`, which becomes its last id where it is new.

    Where the model would read the separator wherever it stands in a text, the text is parted within it. Raises
    ConfigurationError where text spells it in another way, or where it is an ordinary piece of the vocabulary.
    """
    index = rust.token_to_id(separator)
    is_added = index in rust.get_added_tokens_decoder()
    rust.add_special_tokens([separator])
    spelt = None if index is None else spelling(rust, index)
    if spelt is not None and not (spelt.stands and is_added):
        raise ConfigurationError(
            f"tokenizer.separator {separator!r} can be spelt by text, which would end documents anywhere: {spelt.how}; "
            f"name a special token of the vocabulary instead, which are: {_special(rust, but=separator)}, "
            "or add one to added_tokens in tokenizer.json"
        )
    if spelt is not None and not is_parted(rust, separator):
        steps = [] if rust.pre_tokenizer is None else [rust.pre_tokenizer]
        rust.pre_tokenizer = pre_tokenizers.Sequence([*steps, parting(separator)])  # type: ignore[assignment]
    name = "separator" if set(separator) & set(":$") else separator  # a template has its own meaning for these letters
    whole = {"id": name, "ids": [rust.token_to_id(separator)], "tokens": [separator]}
    template = processors.TemplateProcessing(single=["$A", name], special_tokens=[whole])
    rust.post_processor = template  # type: ignore[assignment]  # the library's stubs give the getter's type
    rust.no_padding()
    rust.no_truncation()
    return Tokenizer(rust.to_str())


def _special(rust: tokenizers.Tokenizer, but: str | None = None) -> str:
    added = (token.content for token in rust.get_added_tokens_decoder().values() if token.special)
    return ", ".join(sorted(set(added) - {but})) or "none"


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies (Radford 2019, `bytes_to_unicode`)."""
    printable = re.compile(r"[!-~¡-¬®-ÿ]")
    others = iter(range(256, 512))
    return [chr(byte) if printable.match(chr(byte)) else chr(next(others)) for byte in range(256)]


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield from _pieces(text[:characters])
        characters -= len(text)
        if characters <= 0:
            return


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most PIECE characters with the same words: cut before a space, where there is one.

    The library holds 256 of the texts that it learns from at a time.
    """
    start = 0
    while len(text) - start > PIECE:
        space = text.rfind(" ", start + 1, start + PIECE)
        end = space if space > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right


def _read_text(uri: str) -> str | None:
    system, path = fsspec.core.url_to_fs(uri)
    if not system.isfile(path):
        return None
    try:
        return system.cat_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"tokenizer.uri: {uri} is not UTF-8 text ({error})") from error
