"""Kinds of networks that an experiment can train and a model folder can hold: the unions of their configurations.

`kind: transformer`, this project's own, may be left out.
"""

from typing import Annotated, Any

import pydantic

from edlm.models.autoregressive import TransformerAutoregressiveConfig
from edlm.models.denoiser import TransformerDenoiserConfig
from edlm.published.mdlm import MDLMDenoiserConfig


def _kind(settings: Any) -> str:
    """Return the kind of settings read from a file or made in Python; transformers need not name theirs."""
    return (
        settings.get("kind", "transformer") if isinstance(settings, dict) else getattr(settings, "kind", "transformer")
    )


_BY_KIND = pydantic.Discriminator(_kind)
DenoiserConfig = Annotated[
    Annotated[TransformerDenoiserConfig, pydantic.Tag("transformer")]
    | Annotated[MDLMDenoiserConfig, pydantic.Tag("mdlm")],
    _BY_KIND,
]
AutoregressiveConfig = Annotated[Annotated[TransformerAutoregressiveConfig, pydantic.Tag("transformer")], _BY_KIND]
