"""Energy-based diffusion language models.

>>> import edlm
>>> model = edlm.load("edlm-tiny@champion")  # or the folder or the URI of a bundle  # doctest: +SKIP
>>> print(model.generate("the ", max_tokens=40, seed=1))  # doctest: +SKIP

The names below are imported when they are first used: `import edlm` loads neither torch nor anything else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edlm.client import AsyncClient, Client
    from edlm.config import ConfigurationError
    from edlm.constraints.specification import JsonSchema, OneOf, Regex
    from edlm.energies.conditional import ConditionalEnergyConfig
    from edlm.energies.residual import ResidualEnergyConfig
    from edlm.energies.step import StepEnergyConfig
    from edlm.energies.whole_sequence import (
        AutoregressiveEnergyConfig,
        BidirectionalEnergyConfig,
        CarryOverEnergyConfig,
    )
    from edlm.inference.generator import TextGenerator
    from edlm.inference.language_model import LanguageModel
    from edlm.inference.loading import load
    from edlm.interfaces import AbstractEnergy, Model
    from edlm.likelihood import Estimate, exact_order_nll, nelbo, paper_estimate, sampler_bound
    from edlm.models.denoiser import Denoiser
    from edlm.sampling.sampler import Sampler
    from edlm.schedule import Cosine, LogLinear, Polynomial
    from edlm.training.local_engine import LocalEngine
    from edlm.training.local_training import train
    from edlm.training.settings import Training

__version__ = "0.1.0"
__all__ = [
    "AbstractEnergy",
    "AsyncClient",
    "AutoregressiveEnergyConfig",
    "BidirectionalEnergyConfig",
    "CarryOverEnergyConfig",
    "Client",
    "ConditionalEnergyConfig",
    "ConfigurationError",
    "Cosine",
    "Denoiser",
    "Estimate",
    "JsonSchema",
    "LanguageModel",
    "LocalEngine",
    "LogLinear",
    "Model",
    "OneOf",
    "Polynomial",
    "Regex",
    "ResidualEnergyConfig",
    "Sampler",
    "StepEnergyConfig",
    "TextGenerator",
    "Training",
    "exact_order_nll",
    "load",
    "nelbo",
    "paper_estimate",
    "sampler_bound",
    "train",
]

_HOME = {
    "AbstractEnergy": "edlm.interfaces",
    "AsyncClient": "edlm.client",
    "AutoregressiveEnergyConfig": "edlm.energies.whole_sequence",
    "BidirectionalEnergyConfig": "edlm.energies.whole_sequence",
    "CarryOverEnergyConfig": "edlm.energies.whole_sequence",
    "Client": "edlm.client",
    "ConditionalEnergyConfig": "edlm.energies.conditional",
    "ConfigurationError": "edlm.config",
    "Cosine": "edlm.schedule",
    "Denoiser": "edlm.models.denoiser",
    "Estimate": "edlm.likelihood",
    "JsonSchema": "edlm.constraints.specification",
    "LanguageModel": "edlm.inference.language_model",
    "LocalEngine": "edlm.training.local_engine",
    "LogLinear": "edlm.schedule",
    "Model": "edlm.interfaces",
    "OneOf": "edlm.constraints.specification",
    "Polynomial": "edlm.schedule",
    "Regex": "edlm.constraints.specification",
    "ResidualEnergyConfig": "edlm.energies.residual",
    "Sampler": "edlm.sampling.sampler",
    "StepEnergyConfig": "edlm.energies.step",
    "TextGenerator": "edlm.inference.generator",
    "Training": "edlm.training.settings",
    "exact_order_nll": "edlm.likelihood",
    "load": "edlm.inference.loading",
    "nelbo": "edlm.likelihood",
    "paper_estimate": "edlm.likelihood",
    "sampler_bound": "edlm.likelihood",
    "train": "edlm.training.local_training",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edlm' has no attribute {name!r}; it offers {', '.join(__all__)}", name=name)
    try:
        value = getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "edlm":
            raise
        message = (
            f"edlm.{name} needs {error.name}, which is not installed: "
            'in a checkout of the project, run pip install ".[models]"'
        )
        raise AttributeError(message, name=name) from error  # so that hasattr(edlm, name) is False
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
