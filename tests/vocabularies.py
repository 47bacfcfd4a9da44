"""Tokenizers of every kind that people have, small, each as its tokenizer.json would be."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters, HuggingFaceTokenizer, Symbols, separated
from tests.paths import GPT2

TEXTS = [
    "the cat sat on the mat, the hat and the bat; don't say it's a rat!",
    "héllo wörld, ça va? naïve façade",
    "삼겹살 日本語 🤗🤗 e\u0301 ",
]
SPECIAL = ["<unk>", "</s>", "<s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama(*ends: decoders.Decoder) -> Tokenizer:
    """BPE whose spaces are letters, and whose unknown letters are byte tokens; `ends` after the pieces are joined."""
    words = ["▁", "▁t", "▁c", "▁th", "▁the", "at", "▁cat"]
    letters = sorted(set("thecasnmrobd.,'!") | set("é살"))
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *BYTES, *letters, *words])}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    rust = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    return separated(rust, "</s>")


def unigram() -> Tokenizer:
    """As T5's: pieces learnt with their probabilities."""
    rust = tokenizers.Tokenizer(models.Unigram())
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    rust.train_from_iterator(TEXTS, trainer)
    return separated(rust, "</s>")


def word_piece() -> Tokenizer:
    """As BERT's: the decoder puts spaces between words, and takes some of them away."""
    rust = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    rust.train_from_iterator(TEXTS, trainer)
    rust.add_tokens(["n't", "do not"])
    return separated(rust, "</s>")


def clip() -> Tokenizer:
    """As CLIP's: the last piece of a word says so."""
    rust = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    rust.train_from_iterator(TEXTS, trainer)
    return separated(rust, "</s>")


def of_words(decoder: decoders.Decoder | None, words: list[str]) -> Tokenizer:
    """Whole words, parted where there is white space, and written by any decoder."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    rust = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rust.add_special_tokens(SPECIAL)
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        rust.decoder = decoder
    return separated(rust, "</s>")


WORDS = ["the", "cat", "sat", "mat,", "don't", "일", "🤗🤗", "e\u0301", "▁"]
FULL_STOPS = decoders.Sequence(
    [decoders.Fuse(), decoders.Replace(" .", "."), decoders.Replace("..", "…!"), decoders.Replace(" ", "---")]
)
KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: Bytes().build([]),
    "bpe": lambda: BPE(size=300).build(TEXTS * 4),
    "characters": lambda: Characters().build([]),
    "symbols": lambda: Symbols(size=30).build([]),
    "llama": lambda: llama(decoders.Strip(" ", 1, 0)),
    "gemma": llama,
    "unigram": unigram,
    "word-piece": word_piece,
    "clip": clip,
    "words": lambda: of_words(None, WORDS),
    "ctc": lambda: of_words(decoders.CTC(pad_token="<s>"), ["a", "b", "|", "é", " .", " n't"]),
    "full-stops": lambda: of_words(FULL_STOPS, [" ", ".", "a", " .", "…"]),
    "bytes-then-stops": lambda: of_words(
        decoders.Sequence([decoders.ByteLevel(), decoders.Replace(" .", ".")]), ["Ã", "©", "Ġ", ".", "a"]
    ),
    **({"gpt2": lambda: HuggingFaceTokenizer(uri=str(GPT2)).build([])} if GPT2.is_dir() else {}),
}
"""Their texts can be streamed."""
# Refused when they are opened.
UNSTREAMABLE: Mapping[str, Callable[[], Tokenizer]] = {
    "pattern": lambda: of_words(
        decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("a(b*)c"), "-")]), ["a", "b", "c"]
    ),
    "clean-up": lambda: of_words(
        decoders.Sequence([decoders.Fuse(), decoders.WordPiece()]), ["a", " .", " do", " not"]
    ),
    "inner-suffix": lambda: of_words(decoders.BPEDecoder(suffix="</w>"), ["a</w>b", "c</w>"]),
    "bytes-changed": lambda: of_words(
        decoders.Sequence([decoders.Replace("b", "<0x41>"), decoders.ByteFallback(), decoders.Fuse()]), ["a", "b"]
    ),
}


@cache
def made(name: str) -> Tokenizer:
    """The tokenizer of that name, made once."""
    return {**KINDS, **UNSTREAMABLE}[name]()


@dataclass(frozen=True)
class GivenTokenizer:
    """Builds the tokenizer of that name, as a setting of an experiment would."""

    name: str

    def build(self, texts: Iterable[str]) -> Tokenizer:
        return made(self.name)
