"""Check that data and models speak of the same tokens."""

from collections.abc import Mapping

from edlm.config import ConfigurationError
from edlm.data.tokenizer import FILE, open_tokenizer
from edlm.local_copies import local_copy


def require_same_tokens(inputs: Mapping[str, str]) -> None:
    """Raise ConfigurationError, naming the first mismatch, unless a stage's inputs share one tokenizer.

    `inputs`: URIs by label, with those of the data at "data", or of models alone, which are compared with the first.
    """
    tokenizers = {name: open_tokenizer(local_copy(uri, files=(FILE,))).digest for name, uri in inputs.items()}
    reference = "data" if "data" in tokenizers else next(iter(tokenizers))
    for name, digest in tokenizers.items():
        if digest != tokenizers[reference]:
            raise ConfigurationError(
                f"{name} in {inputs[name]} was made with another tokenizer than the {reference}; "
                "give the data settings of the run that trained it, or train it on these data"
            )
