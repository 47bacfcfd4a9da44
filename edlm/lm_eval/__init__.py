"""Evaluation by lm-evaluation-harness: importing this package registers its model `edlm`.

>>> import lm_eval, edlm.lm_eval
>>> lm_eval.simple_evaluate(model="edlm", model_args={"uri": "FOLDER"}, tasks=["wikitext"])  # doctest: +SKIP

On the command line, `python -m edlm.lm_eval` is `lm_eval` with this model.
"""

try:
    import lm_eval
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    message = (
        'edlm.lm_eval needs lm_eval, which is not installed: in a checkout of the project, run pip install ".[lm-eval]"'
    )
    raise ModuleNotFoundError(message, name=error.name) from error

from edlm.lm_eval.model import EDLM

__all__ = ["EDLM"]

assert lm_eval.__version__  # the harness itself, and not this package under its name
