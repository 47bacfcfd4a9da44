"""Tokenizer kinds that an experiment may name; each builds a tokenizer from its settings or from text."""

import hashlib
import json
import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from string import ascii_letters
from typing import Annotated, Literal

import pydantic
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edlm.config import ConfigurationError, Positive, config
from edlm.data.chat_template import CONFIG_FILE, TEMPLATE_FILE, ChatTemplate, read_chat_template
from edlm.data.separator import is_parted, parting, token_in_text
from edlm.data.token_bytes import byte_letters
from edlm.data.tokenizer import FILE, Tokenizer
from edlm.file_systems import file_system

END_OF_TEXT = "<|endoftext|>"
ALPHABET = " abcdefghijklmnopqrstuvwxyz"
MOST_SYMBOLS = 4096  # a distribution over symbols holds a square matrix of them
# a to z, A to Z, then Chinese characters: 20,902 contiguous ones without a space or accent
SYMBOLS = (ascii_letters + "".join(map(chr, range(0x4E00, 0x9FA6))))[:MOST_SYMBOLS]
FIXED = 257  # tokens of every byte-level BPE: the bytes and the separator
PIECE = 50_000  # characters of a text that BPE trains on at a time
WORD_BYTES = 1_200_000  # of distinct words that BPE trains on: 105 to 126 bytes of memory per byte were measured
_WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+")  # GPT-2's words, except English contractions
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = ("vocab.json", "merges.txt")  # in place of a tokenizer.json
COMMIT = re.compile("^hf://.*@([0-9a-f]{40})(?:/|$)")

log = logging.getLogger(__name__)


@config
class Characters:
    """The 27 characters of text8: a to z and space.

    Accents are dropped, digits spelled out; every run of anything else becomes one space (Mahoney 2006).
    """

    kind: Literal["characters"] = "characters"

    def build(self, texts: Iterable[str], progress: Callable[[str], None] = log.info) -> Tokenizer:
        """Return the tokenizer; `texts` and `progress` are not used."""
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
        return Tokenizer.of(rust)


@config
class Bytes:
    """The 256 byte values of UTF-8, one id per byte, and a separator."""

    kind: Literal["bytes"] = "bytes"

    def build(self, texts: Iterable[str], progress: Callable[[str], None] = log.info) -> Tokenizer:
        """Return the tokenizer; `texts` and `progress` are not used."""
        rust = tokenizers.Tokenizer(_merging(byte_letters()))
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rust.decoder = decoders.ByteLevel()
        return separated(rust, END_OF_TEXT)


@config
class BPE:
    """Byte-level byte-pair encoding, trained on the train split (Sennrich 2016; Radford 2019)."""

    kind: Literal["bpe"] = "bpe"
    size: Positive
    """Number of tokens, including the 256 bytes and the separator."""
    sample: Positive = 100_000_000
    """Characters of the train split to train on. If their distinct words exceed 1.2 MB, which training holds in about
    150 MB of memory, it ends there and prints how much it has read: 18 million characters of English have 0.6 MB."""

    def __post_init__(self) -> None:
        if self.size < FIXED:
            raise ValueError(f"size {self.size} is below {FIXED}: the bytes and the separator alone need that many")

    def build(self, texts: Iterable[str], progress: Callable[[str], None] = log.info) -> Tokenizer:
        """Return a tokenizer trained on the first `sample` characters of `texts`, or as far as WORD_BYTES allows.

        `progress` receives a line when the texts have been read, and one if WORD_BYTES ended the reading.
        Raises ConfigurationError if they do not hold enough pairs for `size` tokens.
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
        rust.train_from_iterator(self._lesson(texts, progress), trainer)
        if (vocabulary_size := rust.get_vocab_size()) < self.size:
            raise ConfigurationError(
                f"tokenizer.size is {self.size}, but the train split holds pairs for {vocabulary_size} tokens only; "
                f"set it to {vocabulary_size} or less, or give more text"
            )
        return separated(rust, END_OF_TEXT)

    def _lesson(self, texts: Iterable[str], progress: Callable[[str], None]) -> Iterator[str]:
        """Yield pieces of the texts to train on."""
        seen: set[str] = set()
        read = size = 0
        for piece in _first(texts, self.sample):
            read += len(piece)
            new = set(_WORD.findall(piece)) - seen
            seen |= new
            size += sum(len(word.encode("utf-8")) for word in new)
            yield piece
            if size > WORD_BYTES:
                progress(
                    f"the tokenizer is trained on the first {read:,} characters: their distinct words have "
                    f"{size:,} bytes, of which at most {WORD_BYTES:,} are held in memory"
                )
                break
        seen.clear()
        progress(f"learning {self.size - FIXED:,} merges")


@config
class Symbols:
    """Symbols of a source (`edlm.data.synthetic`), one id per symbol, with nothing between documents."""

    kind: Literal["symbols"] = "symbols"
    size: Annotated[int, pydantic.Field(ge=2, le=MOST_SYMBOLS)]
    """Number of symbols, taken from a to z, A to Z, and Chinese characters in this order."""

    def build(self, texts: Iterable[str], progress: Callable[[str], None] = log.info) -> Tokenizer:
        """Return the tokenizer; `texts` and `progress` are not used."""
        letters = {letter: index for index, letter in enumerate(SYMBOLS[: self.size])}
        # WordLevel rather than the BPE of `_merging`, which would silently drop an unknown character.
        rust = tokenizers.Tokenizer(models.WordLevel(letters, unk_token="no such symbol"))
        rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        rust.decoder = decoders.Fuse()
        return Tokenizer.of(rust)


@config
class HuggingFaceTokenizer:
    """Existing tokenizer, read as data: no code of its authors is run."""

    kind: Literal["huggingface"] = "huggingface"
    uri: str
    """A tokenizer.json, or a folder with a tokenizer.json or with vocab.json and merges.txt; any fsspec URI."""
    separator: str = END_OF_TEXT
    """Token of the vocabulary to put between documents, for example `</s>`; text must not be able to spell it."""

    def build(self, texts: Iterable[str], progress: Callable[[str], None] = log.info) -> Tokenizer:
        """Return the tokenizer at `uri`; `texts` and `progress` are not used.

        Raises ConfigurationError if there is none, if its vocabulary lacks the separator or text can spell it, or if
        texts of its decoder cannot be streamed.
        """
        rust = self._read()
        if rust.token_to_id(self.separator) is None:
            raise ConfigurationError(
                f"tokenizer.separator {self.separator!r} is not in the vocabulary of {self.uri}; "
                f"its special tokens are: {_special(rust)}"
            )
        try:
            return separated(rust, self.separator)
        except ConfigurationError:
            raise
        except ValueError as error:
            raise ConfigurationError(f"tokenizer.uri {self.uri}: {error}") from error

    def chat_template(self) -> ChatTemplate:
        """Return the chat template beside the tokenizer; raise ConfigurationError if there is none."""
        template, settings = (_read_text(f"{self._folder}/{name}") for name in (TEMPLATE_FILE, CONFIG_FILE))
        return read_chat_template(template, settings, self.uri)

    def version(self) -> str:
        """Return the commit of the hub that `uri` names, or a digest of the files that are read."""
        if (commit := COMMIT.search(self.uri)) is not None:
            return commit[1]
        files = [self.uri] if self.uri.endswith(".json") else [f"{self._folder}/{name}" for name in (FILE, *WORDS)]
        files += [f"{self._folder}/{name}" for name in (TEMPLATE_FILE, CONFIG_FILE)]
        return hashlib.sha256(json.dumps([_read_text(file) for file in files]).encode()).hexdigest()

    @property
    def _folder(self) -> str:
        return posixpath.dirname(self.uri) or "." if self.uri.endswith(".json") else self.uri.rstrip("/")

    def _read(self) -> tokenizers.Tokenizer:
        text = _read_text(self.uri if self.uri.endswith(".json") else f"{self.uri.rstrip('/')}/{FILE}")
        if text is not None:
            try:
                return tokenizers.Tokenizer.from_str(text)
            except Exception as error:  # the library raises no narrower class
                raise ConfigurationError(f"tokenizer.uri {self.uri}: not a tokenizer.json ({error})") from error
        vocabulary, merges = (_read_text(f"{self.uri.rstrip('/')}/{name}") for name in WORDS)
        if vocabulary is None or merges is None:
            raise ConfigurationError(
                f"tokenizer.uri {self.uri}: found no {FILE} and no vocab.json with merges.txt; check the path"
            )
        try:
            lines = (line for line in merges.splitlines() if line and not line.startswith("#version"))
            pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
            rust = tokenizers.Tokenizer(models.BPE(vocab=json.loads(vocabulary), merges=pairs))
        except Exception as error:  # the library raises no narrower class
            raise ConfigurationError(f"tokenizer.uri {self.uri}: damaged vocab.json or merges.txt ({error})") from error
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        return rust


TokenizerConfig = Characters | Bytes | BPE | Symbols | HuggingFaceTokenizer


def _merging(letters: Iterable[str]) -> models.BPE:
    """Return a model of single characters without merges: the library's fastest way to one id per character."""
    return models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])


def separated(rust: tokenizers.Tokenizer, separator: str) -> Tokenizer:
    """Return the tokenizer whose documents end with `separator`, which is added as the last id if it is new.

    If the model would read literal occurrences of the separator, texts are split within them. Raises ConfigurationError
    if text can spell it in another way, or if it is an ordinary piece of the vocabulary.
    """
    index = rust.token_to_id(separator)
    is_added = index in rust.get_added_tokens_decoder()
    rust.add_special_tokens([separator])
    route = None if index is None else token_in_text(rust, json.loads(rust.model.__getstate__()), index)
    if route is not None and not (route.literal_only and is_added):
        raise ConfigurationError(
            f"tokenizer.separator {separator!r} can be spelt by text, which would end documents anywhere: "
            f"{route.reason}; name a special token of the vocabulary instead, which are: "
            f"{_special(rust, but=separator)}, or add one to added_tokens in tokenizer.json"
        )
    if route is not None and not is_parted(rust, separator):
        steps = [] if rust.pre_tokenizer is None else [rust.pre_tokenizer]
        rust.pre_tokenizer = pre_tokenizers.Sequence([*steps, parting(separator)])  # type: ignore[assignment]
    name = "separator" if set(separator) & set(":$") else separator  # special characters of a template
    special_token = {"id": name, "ids": [rust.token_to_id(separator)], "tokens": [separator]}
    template = processors.TemplateProcessing(single=["$A", name], special_tokens=[special_token])
    rust.post_processor = template  # type: ignore[assignment]  # the library's stubs give the getter's type
    rust.no_padding()
    rust.no_truncation()
    return Tokenizer.of(rust)


def _special(rust: tokenizers.Tokenizer, but: str | None = None) -> str:
    added = (token.content for token in rust.get_added_tokens_decoder().values() if token.special)
    return ", ".join(sorted(set(added) - {but})) or "none"


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield from _pieces(text[:characters])
        characters -= len(text)
        if characters <= 0:
            return


def _pieces(text: str) -> Iterator[str]:
    """Yield the text in pieces of at most PIECE characters with the same words: cut before a space, if there is one.

    The library holds 256 of its training texts at a time.
    """
    start = 0
    while len(text) - start > PIECE:
        space = text.rfind(" ", start + 1, start + PIECE)
        end = space if space > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def _read_text(uri: str) -> str | None:
    system, path = file_system(uri)
    if not system.isfile(path):
        return None
    try:
        return system.cat_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"tokenizer.uri: {uri} is not UTF-8 text ({error})") from error
