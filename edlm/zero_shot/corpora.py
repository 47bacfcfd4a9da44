"""The seven corpora of the published zero-shot tables: their locations and detokenisation.

Splits and fields are those that the loader of MDLM and EDLM reads, locations those that the Hugging Face hub lists,
each at a commit, except PubMed: of its files no commit was known, so it is read at a branch, whose content may change.
None was fetched when this was written: an error names any that has moved since. PTB, LM1B and Scientific
Papers are scripts on the hub, which `datasets` no longer runs, so their text comes from the hub's converted files
(branch refs/convert/parquet), and LAMBADA from the file that OpenAI published.
"""

from edlm.data.corpus import Files, HuggingFace
from edlm.zero_shot.detokenizers import LM1B, Lambada, Papers, PennTreebank, Unchanged, WikiText
from edlm.zero_shot.row_conventions import ConventionConfig
from edlm.zero_shot.scoring import ZeroShot

_HUB = "hf://datasets"
_PTB = f"{_HUB}/ptb-text-only/ptb_text_only@6003d540889b95fc8c8403a3f04619f3b943fc8d"
_LM1B = f"{_HUB}/billion-word-benchmark/lm1b@8d52bfd3cc2819fc1166dbb8144c328e2690de3e"
_LAMBADA = f"{_HUB}/EleutherAI/lambada_openai@879e19a2c9bb7ef03f9cf962089cf7d008f91e27"
_PUBMED = f"{_HUB}/armanc/scientific_papers@refs/convert/parquet"
_ARXIV = f"{_HUB}/armanc/scientific_papers@80db6a9bb4d0f6e0ba82617ce885a837a0e52709"
_WHOLE = 100_000_000  # characters; more than the file has, so that it is not cut, as in the published tables


def presets(convention: ConventionConfig, limit: int | None = None) -> tuple[ZeroShot, ...]:
    """Return the seven corpora in the order of the tables; each document is one row of its data set.

    `Published` gives numbers to compare with the tables; a model that was trained here has seen `Wrapped` rows.
    """
    treebank = Files(paths=(f"{_PTB}/penn_treebank/validation/*.parquet",), text_field="sentence")
    wikitext = HuggingFace(
        name="Salesforce/wikitext",
        config="wikitext-103-raw-v1",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        split="validation",
    )
    news = Files(paths=(f"{_LM1B}/plain_text/test/*.parquet",))
    lambada = Files(paths=(f"{_LAMBADA}/data/lambada_test.jsonl",))
    ag_news = HuggingFace(name="fancyzhx/ag_news", revision="eb185aade064a813bc0b7f42de02595523103ca4", split="test")
    pubmed = Files(paths=(f"{_PUBMED}/pubmed/validation/*.parquet",), text_field="article")
    # `partial`: the hub converts so much of a large data set; of arXiv's validation split, one file.
    arxiv = Files(paths=(f"{_ARXIV}/arxiv/partial-validation/*.parquet",), text_field="article")
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
