"""Pairs of a prompt and an answer: rows of which only the answer is learnt."""

from collections.abc import Iterator

from edlm.config import ConfigurationError, config
from edlm.data.document import Document
from edlm.data.text_key import text_key

PLACE = "{prompt}"


@config
class Prompts:
    """Where the prompts of a corpus are; the text field of each row is then the answer to its prompt."""

    field: str
    """JSON field, or column, that holds the prompt."""
    template: str = PLACE
    """Text before the answer, with `{prompt}` where the prompt goes, for example `Question: {prompt}\\nAnswer: `. The
    model expects its prompts in this form."""

    def __post_init__(self) -> None:
        if self.template.count(PLACE) != 1:
            raise ConfigurationError(f"prompts.template {self.template!r} does not hold {PLACE} exactly once")

    def fill(self, prompt: str) -> str:
        """Return the text before the answer."""
        return self.template.replace(PLACE, prompt)


def pair(before: str, answer: str, name: str, longest: int) -> Iterator[Document]:
    """Yield the pair as one document, unless it is blank.

    Its key is that of the text before the answer, so that all answers to a prompt are in one split, unless that is
    blank. Raises ConfigurationError if the pair has more than `longest` characters.
    """
    text = before + answer
    if len(text) > longest:
        raise ConfigurationError(
            f"{name}: a pair of {len(text):,} characters, and pairs are not cut; raise corpus.longest, which is "
            f"{longest:,}, or remove the row"
        )
    if text.strip():
        yield Document(text, name, text_key(before) if before.strip() else None, given=len(before))


def require_one_form(prompts: Prompts | None, messages_field: str | None) -> None:
    """Raise ConfigurationError for a corpus of both pairs and conversations."""
    if prompts is not None and messages_field is not None:
        raise ConfigurationError(
            f"corpus.messages_field is {messages_field!r} and corpus.prompts is set, too: a conversation holds its own "
            "prompt; leave one of the two out"
        )
