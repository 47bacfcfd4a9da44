"""Training in one process, without Ray: from prepared data and an objective to weights, on any device.

Examples:
    A source whose distribution is known, a denoiser, and an energy for it:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from edlm.checkpoints.energies import network_on, open_energy, save_energy
    >>> from edlm.checkpoints.networks import open_denoiser, save_denoiser
    >>> from edlm.data.preparation import Data, prepare
    >>> from edlm.data.splits import Shares
    >>> from edlm.data.synthetic import Markov
    >>> from edlm.data.tokenizer_kinds import Symbols
    >>> from edlm.energies.conditional import ConditionalEnergyConfig
    >>> from edlm.interfaces import Model
    >>> from edlm.models.denoiser import Denoiser
    >>> from edlm.models.transformer import TransformerConfig
    >>> from edlm.schedule import LogLinear
    >>> from edlm.training.energy_objectives import ConditionalLikelihoodObjective
    >>> from edlm.training.local_training import train
    >>> from edlm.training.objectives import Denoising
    >>> from edlm.training.settings import Training
    >>> folder = Path(tempfile.mkdtemp())
    >>> source = Markov(symbols=4, length=8, sequences=500)
    >>> split = Shares(validation=0.1, judge=0)
    >>> data = Data(corpus=source, tokenizer=Symbols(size=4), length=8, shares=split)
    >>> summary = prepare(data, folder / "data", progress=lambda line: None)
    >>> transformer, schedule = TransformerConfig(width=16, layers=1, heads=2), LogLinear()
    >>> tokenizer = folder / "data" / "tokenizer.json"
    >>> _ = torch.manual_seed(0)
    >>> objective = Denoising(Denoiser(transformer, summary.vocabulary), schedule, seed=0)
    >>> settings = Training(steps=20, batch=16, learning_rate=1e-2, log_every=10)
    >>> weights = train(objective, folder / "data", settings, workspace=folder / "checkpoints")  # doctest: +ELLIPSIS
    [training] step 10/20  loss ... tokens/s  0:00:0... left
    [training] step 20/20  loss ... tokens/s  0:00:00 left
    >>> _ = save_denoiser(folder / "denoiser", weights, transformer, schedule, data.length, tokenizer, facts={})
    >>> denoiser = open_denoiser(folder / "denoiser")
    >>> kind = ConditionalEnergyConfig(width=16, layers=1, heads=2)
    >>> energy = ConditionalLikelihoodObjective(Model(denoiser.network, kind.build(denoiser.network), schedule), seed=0)
    >>> weights = train(energy, folder / "data", settings, say=lambda line: None)
    >>> network = network_on(kind, denoiser)
    >>> _ = save_energy(folder / "energy", weights, network, data.length, tokenizer, facts={})
    >>> open_energy(folder / "energy", denoiser).normalised
    True
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import pydantic
import torch
from torch import Tensor, nn

from edlm.checkpoints.snapshot_retention import snapshots, step_of
from edlm.checkpoints.training_state import keep_final, newest_snapshot, snapshot_facts, verify_snapshot
from edlm.config import ConfigurationError, parse, plain
from edlm.data.batches import Batches
from edlm.data.splits import Split
from edlm.data.token_file import INDEX, TokenFile, read_summary
from edlm.storage import join, sha256
from edlm.training.checkpointing import Checkpointing
from edlm.training.interfaces import Engine, Objective
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.progress import ProgressLines, parameter_counts, say_counts, say_emulation
from edlm.training.resume_compatibility import continuable_step, incompatibility
from edlm.training.settings import Training
from edlm.training.validation import validation_rows

DIGITS = 12
"""Of the digests that are compared."""

Log = Callable[[int, Mapping[str, float]], None]


def train(
    objective: Objective,
    data: Path,
    training: Training,
    seed: int = 0,
    *,
    split: Split = "train",
    workspace: Path | None = None,
    name: str = "training",
    say: Callable[[str], None] = print,
    log: Log | None = None,
) -> dict[str, Tensor]:
    """Train `objective` on a split of the prepared folder `data` and return the weights, in float32 on the CPU.

    The device is that of the objective's weights: move the objective there first. `say` receives a progress line every
    `log_every` steps, and `log` the metrics of every step. With a `workspace`, the state is kept there every
    `checkpoint_every` steps, and a training that was interrupted resumes from it with the same result. With `decay:
    constant` the last state stays there, with `decay: wsd` the one before the decay, and a call with more `steps` goes
    on from it as if they had been asked for at first, also if the training was interrupted in its decay. Both need an
    objective that was built as for the first call: the weights that it starts with are compared.
    The returned weights are the running averages if `training.ema` is set, the best of them with `training.keep_best`;
    `objective.trained` holds the raw ones of the last step. `save_denoiser`, `save_energy` and `save_autoregressive`
    write what the text generator and bundles open.
    Raise NonFiniteLoss at the first step that is not finite, ValueError for a folder that holds no prepared data,
    ConfigurationError for a workspace with the state of another training, and NoValidSnapshot for one whose checkpoints
    are all damaged.
    """
    if training.init_from is not None:
        raise ConfigurationError(
            f"init_from is {training.init_from}, which is for the stages; here load the weights into the objective: "
            "load_into(objective.trained, load_weights(folder)) of edlm.checkpoints.model_folder"
        )
    if training.lora is not None:
        raise ConfigurationError(
            "lora is set, which is for the stages; here give the objective a network with_adapters, and give what this "
            "function returns to merged, both of edlm.huggingface.lora"
        )
    if training.profile is not None:
        raise ConfigurationError(
            "profile is set, which is for the stages; here call this function within torch.profiler.profile"
        )
    length = read_summary(data).length
    batches = Batches(TokenFile.open(data, split), length, training.batch, seed)
    identity = {} if workspace is None else _identity(objective, data, split, seed)
    engine = LocalEngine(objective, training)
    say_counts(name, parameter_counts(objective.trained), say)
    say_emulation(name, training, engine.masters[0].device, say)
    checkpointing = None
    if workspace is not None:
        if (newest := newest_snapshot(str(workspace))) is not None:
            before = _before_decay(str(workspace), *newest, training)
            _require_same(*(before or newest), training, identity)
            if before is not None:
                verify_snapshot(before[0])
                keep_final(str(workspace), before[1])
                say(f"[{name}] goes back from step {newest[1]}, in the decay of a shorter training")
        checkpointing = Checkpointing(
            engine, str(workspace),
            facts={"training": plain(training), **identity},
            kept=continuable_step(training, training.steps),
        )  # fmt: skip
        if checkpointing.resume() is not None:
            say(f"[{name}] resumes after step {engine.step}")
    lines = ProgressLines(name, training, length, say)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        lines.log(step, metrics)
        if log is not None:
            log(step, metrics)

    with checkpointing or nullcontext():
        save = _unsaved if checkpointing is None else checkpointing.save
        fit(engine, batches.rows, training, seed, report, save, validation_rows(data, training))
    lines.stop(engine)
    if workspace is not None and (kept := continuable_step(training, engine.step)) is not None:
        keep_final(str(workspace), kept)
    return engine.export()


def _unsaved(engine: Engine) -> None:
    """Keep no checkpoint: there is no workspace."""


def _identity(objective: Objective, data: Path, split: Split, seed: int) -> dict[str, pydantic.JsonValue]:
    """Return what, besides its settings, makes a training another one; of data and weights the digests."""
    assert isinstance(objective, nn.Module)
    weights = hashlib.sha256()
    for name, tensor in sorted(objective.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "seed": seed,
        "split": split,
        "data": sha256(data / INDEX)[:DIGITS],
        "objective": type(objective).__name__,
        "initial_weights": weights.hexdigest()[:DIGITS],
    }


def _before_decay(workspace: str, uri: str, step: int, training: Training) -> tuple[str, int] | None:
    """Return (URI, step) of the state that an unfinished shorter training kept before the decay in which it stands.

    None if the newest snapshot, `uri`, is not in a decay, or the training does not have more steps than it had.
    """
    earlier = snapshot_facts(uri).get("training")
    if not isinstance(earlier, dict) or earlier.get("steps", training.steps) >= training.steps:
        return None
    kept = continuable_step(parse(Training, earlier), step)
    if kept is None or kept == step:
        return None
    names = [name for name in snapshots(workspace) if step_of(name) > kept]
    found = newest_snapshot(workspace, {join(workspace, name): "it is in the decay" for name in names})
    return found if found is not None and found[1] == kept else None


def _require_same(uri: str, step: int, training: Training, identity: Mapping[str, pydantic.JsonValue]) -> None:
    """Raise ConfigurationError unless the snapshot is a state of this training, perhaps one with fewer steps."""
    facts = snapshot_facts(uri)
    earlier = facts.get("training")
    if not isinstance(earlier, dict) or not identity.keys() <= facts.keys():
        reasons = ["it does not record which training it is a state of"]
    else:
        reasons = [f"{name} changed {facts[name]} -> {now}" for name, now in identity.items() if facts[name] != now]
        if (reason := incompatibility(earlier, step, training)) is not None:
            reasons.append(reason)
    if reasons:
        raise ConfigurationError(
            f"the training in {uri} cannot be continued: {'; '.join(reasons)}; use another workspace"
        )
