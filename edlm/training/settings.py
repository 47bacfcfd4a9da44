"""Training settings, and the rows of each worker that follow from them."""

from typing import Annotated, Literal

import pydantic

from edlm.config import ConfigurationError, NonNegative, NonNegativeFloat, Positive, PositiveFloat, config
from edlm.huggingface.lora import LowRankAdaptation

Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]
Share = Annotated[float, pydantic.Field(gt=0, lt=1)]


@config
class ProfileWindow:
    """Steps of a training that are profiled."""

    first: NonNegative = 10
    """First profiled step; steps count from 0."""
    steps: Positive = 3
    """Number of profiled steps. A profile takes memory, and time of each of them."""


@config
class Muon:
    """Muon, the optimizer of matrices (Jordan et al. 2024), scaled to the updates of AdamW (Liu et al. 2025)."""

    momentum: Decay = 0.95
    """Decay rate of the average of the gradient; an update is computed from the average one step ahead (Nesterov)."""


@config
class Training:
    """Training settings: AdamW, or Muon and AdamW, with warm-up, then a constant or a decaying learning rate."""

    steps: Positive
    """Optimizer steps."""
    batch: Positive
    """Rows per step, over all workers and micro-steps."""
    accumulation: Positive = 1
    """Micro-steps whose gradients, accumulated in float32, form one step: less memory, and the same step up to rounding
    (and up to dropout, which differs). In bfloat16 each micro-step's gradient is rounded to 8 bits first."""
    learning_rate: PositiveFloat = 3e-4
    """Highest learning rate, reached after the warm-up."""
    warmup_steps: NonNegative = 0
    """Number of first steps, over which the learning rate rises linearly to `learning_rate`; 0: none."""
    decay: Literal["constant", "cosine", "wsd"] = "cosine"
    """Learning rate after the warm-up: constant; half a cosine, which reaches 0 after the last step; or constant and,
    over the last `decay_share` of the steps, linear to 0 (wsd: warm-up, stable, decay; Hu et al. 2024). A finished
    training continues with more `steps` from its last step if the rate is constant, and from where the decay began if
    it is wsd, as if all had been asked for at first; with a cosine it begins again."""
    decay_share: Share = 0.1
    """Share of the steps, the last ones, over which the learning rate of `decay: wsd` falls to 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay per step, in units of the learning rate; it applies to all weights."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """AdamW's decay rates of the averages of the gradient and of its square."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's constant in the denominator of an update, for numerical stability."""
    muon: Muon | None = None
    """Muon for the linear layers of the transformer's blocks, with the learning rate and weight decay of AdamW, which
    trains the other weights; `muon: {}` takes its defaults. It keeps one average per weight where AdamW keeps two. Not
    for networks of kind `huggingface`. None: AdamW trains all weights."""
    clip: PositiveFloat = 1.0
    """Maximum norm of the gradient of all weights."""
    ema: Decay | None = None
    """Decay of the running average of the float32 weights, which is exported; None exports the last weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the passes. In bfloat16 the weights and the optimizer's state stay float32; it saves memory and is
    faster where the hardware computes it, on CPUs without such support slower."""
    activation_checkpointing: bool = False
    """Compute the blocks again in the backward pass instead of keeping what is within them (activation checkpointing):
    less memory, a forward pass more, and the same losses, dropout included. No influence on the weights."""
    compiled: bool = False
    """Compile the blocks on first use (torch.compile), which takes up to minutes and needs a C++ compiler, on a GPU
    Triton and a C compiler; not with ZeRO-3. The losses are the same up to rounding."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints, from which an interrupted training resumes. No influence on the weights."""
    log_every: Positive = 50
    """Steps between log lines and tracked metrics. No influence on the weights."""
    profile: ProfileWindow | None = None
    """Steps that torch.profiler records on rank 0; the tracked run gets the trace `profile.json`, for Perfetto, and the
    table of operators `profile.txt`. A training that resumes after the first of them is not profiled. None: no step.
    No influence on the weights."""
    init_from: str | None = None
    """URI of a finished model whose weights a stage starts from: of the same architecture, vocabulary, tokenizer and
    schedule. Of an energy, the denoiser that it was made for may be another one of that schedule; its network is
    compared by the shapes of the weights only. None: fresh weights."""
    lora: LowRankAdaptation | None = None
    """Adapters of low rank in a network of kind `huggingface`. They alone train, and are merged as it is saved. None:
    all weights train."""
    validate_every: Positive | None = None
    """Steps from one validation loss to the next; one more is measured after the last step. None: no validation."""
    validation_rows: Positive = 256
    """Rows of the validation split, evenly spaced over it: the same rows with the same noise every time. The evaluation
    measures rows of the same split: with `keep_best` or `early_stopping_patience` weights are selected on them."""
    keep_best: bool = False
    """Export the weights with the lowest validation loss instead of the last ones."""
    early_stopping_patience: Positive | None = None
    """Stop after this many validations in a row without a lower loss; None: take all steps."""

    def __post_init__(self) -> None:
        if self.profile is not None and self.profile.first + self.profile.steps > self.steps:
            raise ConfigurationError(
                f"profile: its last step is {self.profile.first + self.profile.steps - 1}, steps count from 0, "
                f"and the last of steps: {self.steps} is {self.steps - 1}; choose earlier ones"
            )
        if self.muon is not None and self.lora is not None:
            raise ConfigurationError(
                "muon and lora are set, and Muon is for whole matrices, not for the factors of an adapter; remove one "
                "of the two"
            )
        if self.validate_every is not None:
            return
        for field in ("keep_best", "early_stopping_patience"):
            if value := getattr(self, field):
                raise ConfigurationError(
                    f"{field} is {str(value).lower()}, but there is no validation loss to go by; set validate_every"
                )


def share(training: Training, world_size: int) -> int:
    """Return the rows per worker and micro-step. Raise ConfigurationError if the batch does not divide evenly."""
    parts = world_size * training.accumulation
    if training.batch % parts:
        raise ConfigurationError(
            f"a batch of {training.batch} rows does not divide into "
            f"{world_size} workers x {training.accumulation} micro-steps: make batch a multiple of {parts}"
        )
    return training.batch // parts
