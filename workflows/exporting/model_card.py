"""Model card of an exported repository: what the model is, how it was measured, and how to draw texts from it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

import edlm
from edlm.config import ConfigurationError, plain
from edlm.inference.generator import DENOISER, ENERGIES, TextGenerator
from edlm.inference.results import described
from edlm.inference.settings import ResolvedSettings
from edlm.local_copies import local_copy
from workflows.reporting.sampler_labels import Row

PORT = 5001
EXAMPLE = {"prompt": "the ", "max_tokens": 40, "seed": 1}
UNMEASURED = "No bounds were measured, or none were given to the export."


def model_card(generator: TextGenerator, licence: str, bounds: Sequence[Row]) -> str:
    """Return README.md: front matter for the hub, then the card. `bounds`: rows of the evaluation's table of bounds."""
    use = [_generation(), *_conversations(generator)]
    parts = [_front_matter(licence), _what(generator), *use, _measured(bounds), _serving(), _files()]
    return "\n\n".join(parts) + "\n"


def measured_bounds(uri: str, models: Mapping[str, str]) -> list[Row]:
    """Return the bounds of plain diffusion and of a model's energies that an evaluation measured.

    `models`: digests by folder in the bundle. Raise ConfigurationError if the evaluation measured another denoiser, or
    another energy of the same name, does not record which it measured, or holds no bounds.
    """
    import pyarrow.parquet as pq  # deferred: not every export reads an evaluation

    from workflows.evaluate import SUMMARY
    from workflows.row_names import PLAIN

    folder = local_copy(uri)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        rows = pq.read_table(folder / "bounds.parquet").to_pylist()
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{uri} is no evaluation ({Path(error.filename or '').name} is missing); give what an evaluate stage wrote"
        ) from None
    if (measured := summary.get("models")) is None:
        raise ConfigurationError(
            f"{uri} does not record which weights it measured; run evaluate again, and give what it writes"
        )
    compared = {DENOISER, *measured} & models.keys()
    if other := sorted(part for part in compared if measured.get(part) != models[part]):
        raise ConfigurationError(
            f"{uri} measured other weights than this model's ({', '.join(other)}), of experiment "
            f"{summary['experiment']!r}; give the evaluation of the run that registered the model"
        )
    energies = [part.removeprefix(f"{ENERGIES}/") for part in models if part.startswith(f"{ENERGIES}/")]
    return [row for row in rows if row["energy"] in (PLAIN, *energies)]


def _front_matter(licence: str) -> str:
    return f"""---
license: {licence}
library_name: transformers
pipeline_tag: text-generation
tags: [edlm, diffusion-language-model, energy-based-model]
---"""


def _what(generator: TextGenerator) -> str:
    bundle, opened = generator.bundle, generator.denoiser
    sampler = described(ResolvedSettings(bundle.sampler, bundle.energy))
    energies = [
        f"- `{name}`: {type(energy).__name__}, {_weights(energy):,} weights"
        for name, energy in generator.energies.items()
    ]
    return "\n".join(
        [
            f"# {bundle.name}",
            "",
            "A masked-diffusion language model with energies that choose among candidates "
            "([Xu et al. 2024](https://arxiv.org/abs/2410.21357)), exported from "
            f"edlm {edlm.__version__}. A text starts as masks; each step draws k candidates for some of them and "
            "keeps one with probability proportional to exp(-E).",
            "",
            f"- denoiser: {_weights(opened.network):,} weights, {generator.tokenizer.size:,} tokens, "
            f"a canvas of {opened.length} tokens, schedule {plain(opened.schedule)['kind']}",
            *(energies or ["- no energies: plain diffusion"]),
            f"- registered with the sampler: {sampler}",
        ]
    )


def _weights(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _generation() -> str:
    prompt, max_tokens, seed = EXAMPLE.values()
    return f"""## Generate

`modeling_edlm.py` needs `transformers` and torch only. With the same settings and seed it returns the texts of
`edlm.load(...).generate`.

```python
from transformers import AutoModel, PreTrainedTokenizerFast

repository = "."  # this folder, or its name on a hub
tokenizer = PreTrainedTokenizerFast.from_pretrained(repository)
model = AutoModel.from_pretrained(repository, trust_remote_code=True)
print(model.generate("{prompt}", tokenizer=tokenizer, max_tokens={max_tokens}, seed={seed}))
print(model.generate("{prompt}", tokenizer=tokenizer, n=3, steps=8, candidates=1, seed={seed}))  # plain diffusion
```

`steps`, `candidates` (1: plain diffusion; 0: exact draws from a normalised energy), `energy`, `window` and
`energy_temperature` default to the registered sampler. `model(input_ids).logits` are the denoiser's over the tokens,
with `model.config.mask_id` where the text is open; `model.energy(name, x, xt)` scores candidates, low where text is
likely. The tokenizer ends documents with its separator: read a prompt with `add_special_tokens=False`."""


def _conversations(generator: TextGenerator) -> list[str]:
    if generator.denoiser.chat is None:
        return []
    return [
        """## Conversations

`chat_template.jinja` is the template of the data that the model was trained on or imported for. The tokenizer reads
text that looks like a special token as text, so let it read the special tokens of the template:

```python
messages = [{"role": "user", "content": "hello"}]
spelt = {"split_special_tokens": False}
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=False, tokenizer_kwargs=spelt
)
for tokens in model.generate_tokens(prompt, 40, [1]):  # at most 40 tokens, from the seed 1
    print(tokenizer.decode(tokens))
```

Special tokens that a message spells become their ids there, too; `edlm.load(...).conversation` reads them as text."""
    ]


def _measured(bounds: Sequence[Row]) -> str:
    if not bounds:
        return f"## Measured\n\n{UNMEASURED}"
    from workflows.reporting.tabulation import bound_table  # deferred: Matplotlib takes a second

    table = bound_table(bounds)
    rows = ["| " + " | ".join(cells) + " |" for cells in (table.columns, ["---"] * len(table.columns), *table.rows)]
    caption = f"{table.caption}. Each is an upper bound on -log p of the sampler that runs."
    return "\n".join(["## Measured", "", caption, "", *rows])


def _serving() -> str:
    prompt, max_tokens, seed = EXAMPLE.values()
    request = json.dumps({"inputs": [prompt], "params": {"max_tokens": max_tokens, "seed": seed}})
    return f"""## Serve with MLflow

`mlflow/` is the same model as an MLflow `pyfunc` (models from code); it needs mlflow, transformers and torch.

```bash
mlflow models serve -m mlflow --env-manager local --port {PORT}
curl -s http://127.0.0.1:{PORT}/invocations -H 'content-type: application/json' -d '{request}'
```"""


def _files() -> str:
    return """## Back to edlm

`python -m workflows.import_export FOLDER TARGET` makes the bundle again, with the same weights, cards and tokenizer,
bit for bit (`edlm/` holds their checksums). Energies are a property of this denoiser: they fit no other."""
