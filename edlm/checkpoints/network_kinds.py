"""Kinds of networks that an experiment can name and a model folder can hold: the unions of their configurations.

`kind: transformer`, this project's own, may be left out.
"""

from typing import Annotated, Any

import pydantic

from edlm.huggingface.autoregressive import HuggingFaceAutoregressiveArchitecture, HuggingFaceAutoregressiveSource
from edlm.huggingface.denoiser import HuggingFaceDenoiserArchitecture, HuggingFaceDenoiserSource
from edlm.models.autoregressive import TransformerAutoregressiveConfig
from edlm.models.denoiser import TransformerDenoiserConfig
from edlm.published.mdlm import MDLMDenoiserConfig


def _kind(settings: Any) -> str:
    """Return the kind of settings read from a file or made in Python; transformers need not name theirs."""
    return (
        settings.get("kind", "transformer") if isinstance(settings, dict) else getattr(settings, "kind", "transformer")
    )


_BY_KIND = pydantic.Discriminator(_kind)
_Denoiser = (
    Annotated[TransformerDenoiserConfig, pydantic.Tag("transformer")]
    | Annotated[MDLMDenoiserConfig, pydantic.Tag("mdlm")]
)
_Autoregressive = Annotated[TransformerAutoregressiveConfig, pydantic.Tag("transformer")]
DenoiserConfig = Annotated[
    _Denoiser | Annotated[HuggingFaceDenoiserArchitecture, pydantic.Tag("huggingface_architecture")], _BY_KIND
]
"""What a model folder can hold."""
AutoregressiveConfig = Annotated[
    _Autoregressive | Annotated[HuggingFaceAutoregressiveArchitecture, pydantic.Tag("huggingface_architecture")],
    _BY_KIND,
]
DenoiserSettings = Annotated[_Denoiser | Annotated[HuggingFaceDenoiserSource, pydantic.Tag("huggingface")], _BY_KIND]
"""What an experiment can name: a network to be trained, or one that comes with weights."""
AutoregressiveSettings = Annotated[
    _Autoregressive | Annotated[HuggingFaceAutoregressiveSource, pydantic.Tag("huggingface")], _BY_KIND
]
