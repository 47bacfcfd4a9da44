"""Exported model as an MLflow `pyfunc`: prompts in, texts out. MLflow runs this file where the model is loaded.

It lies beside the model that it serves (`pyfunc_folder`) and needs mlflow, transformers and torch, and nothing of edlm.
"""

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

REPOSITORY = "repository"  # the artifact: a folder with config.json, weights, tokenizer and modeling_edlm.py


class ExportedModel(PythonModel):
    """Texts that follow prompts, drawn by the exported k-candidate sampler."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the tokenizer and the networks."""
        from transformers import AutoModel, PreTrainedTokenizerFast  # deferred: seconds, and not needed to save

        folder = context.artifacts[REPOSITORY]
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: PythonModelContext, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[str]:
        """Return a text for each prompt; that of prompt i has the seed `seed` + i.

        `params` are those of the model's signature, and their defaults the sampler that the model was registered with.
        Raise ValueError for a setting that the model cannot take.
        """
        settings = dict(params or {})
        seed, energy = settings.pop("seed"), settings.pop("energy") or None
        return [
            self.model.generate(prompt, tokenizer=self.tokenizer, seed=seed + row, energy=energy, **settings)[0]
            for row, prompt in enumerate(model_input)
        ]


set_model(ExportedModel())
