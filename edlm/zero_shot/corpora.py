"""The seven corpora of the published zero-shot tables: their locations and detokenisation.

Splits and fields are those that the loader of MDLM and EDLM reads, locations those that the Hugging Face hub lists.
None was fetched when this was written: an error names any that has moved since. PTB, LM1B and Scientific
Papers are scripts on the hub, which `datasets` no longer runs, so their text comes from the hub's converted files
(branch refs/convert/parquet), and LAMBADA from the file that OpenAI published.
"""

from edlm.data.corpus import Files, HuggingFace
from edlm.zero_shot.detokenizers import LM1B, Lambada, Papers, PennTreebank, Unchanged, WikiText
from edlm.zero_shot.row_conventions import ConventionConfig
from edlm.zero_shot.scoring import ZeroShot

_HUB = "hf://datasets"
_CONVERTED = "@refs/convert/parquet"
_WHOLE = 100_000_000  # characters; more than the file has, so that it is not cut, as in the published tables
_PAPERS = f"{_HUB}/armanc/scientific_papers{_CONVERTED}"


def presets(convention: ConventionConfig, limit: int | None = None) -> tuple[ZeroShot, ...]:
    """Return the seven corpora in the order of the tables; each document is one row of its data set.

    `Published` gives numbers to compare with the tables; a model that was trained here has seen `Wrapped` rows.
    """
    treebank = Files(
        paths=(f"{_HUB}/ptb-text-only/ptb_text_only{_CONVERTED}/penn_treebank/validation/*.parquet",),
        text_field="sentence",
    )
    wikitext = HuggingFace(name="Salesforce/wikitext", config="wikitext-103-raw-v1", split="validation")
    news = Files(paths=(f"{_HUB}/billion-word-benchmark/lm1b{_CONVERTED}/plain_text/test/*.parquet",))
    lambada = Files(paths=(f"{_HUB}/EleutherAI/lambada_openai/data/lambada_test.jsonl",))
    ag_news = HuggingFace(name="fancyzhx/ag_news", split="test")
    pubmed = Files(paths=(f"{_PAPERS}/pubmed/validation/*.parquet",), text_field="article")
    arxiv = Files(paths=(f"{_PAPERS}/arxiv/validation/*.parquet",), text_field="article")
    return tuple(
        ZeroShot(name=name, corpus=corpus, detokenizer=detokenizer, convention=convention, limit=limit)
        for name, corpus, detokenizer in (
            ("ptb", treebank, PennTreebank()),
            ("wikitext-103", wikitext, WikiText()),
            ("lm1b", news, LM1B()),
            ("lambada", lambada, Lambada()),
            ("ag-news", ag_news, Unchanged()),
            ("pubmed", pubmed, Papers()),
            ("arxiv", arxiv, Papers()),
        )
    )


def wikitext_2(path: str, convention: ConventionConfig, limit: int | None = None) -> ZeroShot:
    """Return WikiText-2 from a text file in its tokenised form, which keeps `<unk>`; the whole file is one document."""
    corpus = Files(paths=(path,), format="txt", longest=_WHOLE)
    return ZeroShot(name="wikitext-2", corpus=corpus, detokenizer=WikiText(), convention=convention, limit=limit)
