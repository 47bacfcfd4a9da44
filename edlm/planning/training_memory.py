"""Memory of a training per device, and what its devices send one another, by the stage of ZeRO.

ZeRO (Rajbhandari et al. 2020) shards the optimizer's state (stage 1), also the gradients (2), also the weights (3). The
formulas follow `cluster.training.deepspeed_engine`, that is DeepSpeed as it is configured there.
"""

from dataclasses import dataclass

from edlm.inverse_cdf import LARGE
from edlm.models.readout import CHUNK
from edlm.training.settings import Training

FLOAT32 = 4  # bytes
MOMENTS = 2  # of AdamW per parameter; Muon has one
BUCKET = 500_000_000  # elements of DeepSpeed's buckets, in which gradients are reduced and weights gathered
LIVE = 1_000_000_000  # elements of weights that stage 3 keeps gathered, at most
LOGIT_SUMMED = 8  # bytes per logit where a sum of log p is trained: it, and its log-probability in float32
LOGIT_TRAINED = 12  # where each log p is: its log-probability, and the gradients of both


@dataclass(frozen=True)
class Sharding:
    """Stage of ZeRO, and whether the optimizer's state (at stage 3 the weights, too) is kept in host memory."""

    stage: int
    offload: bool = False
    """Not at stage 0, as in `cluster.config.Zero`."""

    @property
    def name(self) -> str:
        return f"ZeRO-{self.stage}" + (", offload" if self.offload else "")

    def of(self, training: Training) -> "Sharding":
        """Return the sharding of a training: in bfloat16 stage 0 is treated as 1."""
        return Sharding(1) if self.stage == 0 and training.precision == "bfloat16" else self


SHARDINGS = (*(Sharding(stage) for stage in range(4)), *(Sharding(stage, offload=True) for stage in (2, 3)))


@dataclass(frozen=True)
class TrainingWork:
    """What one training step computes and keeps, whatever the devices."""

    trained: int
    """Parameters that train."""
    matrices: int
    """Those of them in matrices of transformer blocks, which Muon trains where it is set."""
    frozen: int
    """Other parameters, for example of the denoiser under an energy."""
    flop: float
    """Model FLOP of a step (`edlm.training.flops`)."""
    activations: float
    """Elements per row that are kept for the backward pass."""
    checkpointed: float
    """The same with activation checkpointing."""
    logits: float
    """Positions per row whose logits have a gradient."""
    vocabulary: int
    logit_bytes: int = LOGIT_SUMMED
    """Bytes per such logit, in float32."""
    padding_rows: float = 0.0
    """Rows whose activations are kept besides, whatever the rows."""
    frozen_pass: float = 0.0
    """Elements per row of a pass of the frozen network, which ends before anything is kept."""
    drawn: float = 0.0
    """Positions per row whose logits a frozen network computes, to draw candidates or to score them."""
    drawn_bytes: int = LOGIT_SUMMED
    """Bytes per such logit, in float32."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per device."""

    weights: float
    gradients: float
    masters: float
    """Float32 weights apart from those of the network."""
    moments: float
    average: float
    """Running average, and the best weights where they are kept."""
    buckets: float
    activations: float
    logits: float
    frozen: float
    """What the pass of a frozen network takes beyond activations and logits, which come after it."""

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def training_memory(
    work: TrainingWork, training: Training, rows: int, devices: int, sharding: Sharding, chunk: int = CHUNK
) -> TrainingMemory:
    """Return the most memory per device of a micro-step over `rows` rows: of its passes or, before, a frozen one.

    `chunk`: most logits in memory at once.
    """
    sharding = sharding.of(training)
    stage, size = sharding.stage, 2 if training.precision == "bfloat16" else FLOAT32
    share = 1 / devices if stage > 0 else 1.0
    kept = 0.0 if sharding.offload else 1.0
    kept_elements = work.checkpointed if training.activation_checkpointing else work.activations
    activations = (rows + work.padding_rows) * kept_elements * size
    rounded = size if size < FLOAT32 else 0  # in bfloat16 a logit is there in both precisions
    logits, drawn = (min(rows * positions * work.vocabulary, chunk) for positions in (work.logits, work.drawn))
    logits_bytes = logits * (work.logit_bytes + rounded)
    frozen = max(rows * work.frozen_pass * size, drawn * (work.drawn_bytes + rounded))
    return TrainingMemory(
        weights=_weights(work, size, devices, sharding),
        gradients=_gradients(work.trained, devices, sharding),
        masters=kept * (work.trained * share * FLOAT32 if stage > 0 else 0.0),
        moments=kept * moments(work, training) * share * FLOAT32,
        average=kept * averages(training) * work.trained * share * FLOAT32,
        buckets=0.0 if stage == 0 else min(BUCKET, work.trained) * (size if stage > 1 else FLOAT32),
        activations=activations,
        logits=logits_bytes,
        frozen=max(0.0, frozen - activations - logits_bytes),
    )


def logit_drawn(vocabulary: int) -> int:
    """Return the bytes per logit where tokens are drawn: it, its probability and, of a small vocabulary, float64 sums.

    Both are in float32.
    """
    return 2 * FLOAT32 if vocabulary >= LARGE else 4 * FLOAT32


def averages(training: Training) -> int:
    """Return how many copies of the weights are kept beside those that train: the average, and the best."""
    return (training.ema is not None) + training.keep_best


def moments(work: TrainingWork, training: Training) -> int:
    """Return the elements of the optimizer's averages: two per parameter of AdamW, one of Muon."""
    return MOMENTS * work.trained - (work.matrices if training.muon is not None else 0)


def state_bytes(work: TrainingWork, training: Training) -> int:
    """Return the bytes of a checkpoint's tensors: float32 weights, moments, and copies of the weights."""
    return FLOAT32 * (work.trained * (1 + averages(training)) + moments(work, training))


def sent_bytes(work: TrainingWork, training: Training, devices: int, sharding: Sharding) -> float:
    """Return the bytes that each device sends per step, with ring collectives, (N - 1) / N of a tensor of N parts.

    Gradients travel in float32; at stages 2 and 3 after each micro-step. Stage 3 gathers all weights, frozen ones too,
    for the forward pass and again for the backward pass. Muon adds up each matrix over the devices that share it.
    """
    sharding = sharding.of(training)
    size = 2 if training.precision == "bfloat16" else FLOAT32
    ring, gradients = (devices - 1) / devices, work.trained * FLOAT32
    gathered = 2 * work.matrices * FLOAT32 if training.muon is not None else 0
    match sharding.stage:
        case 0:
            return 2 * ring * gradients
        case 1:
            return ring * (2 * gradients + work.trained * size + gathered)
        case 2:
            return ring * (gradients * training.accumulation + work.trained * size + gathered)
        case _:
            passes = gradients + (2 * work.trained + work.frozen) * size
            return ring * (training.accumulation * passes + gathered)


def _weights(work: TrainingWork, size: int, devices: int, sharding: Sharding) -> float:
    everything = (work.trained + work.frozen) * size
    if sharding.stage < 3:
        return everything
    gathered = min(work.trained + work.frozen, LIVE) * size
    return gathered + (0.0 if sharding.offload else everything / devices)


def _gradients(trained: int, devices: int, sharding: Sharding) -> float:
    """Return the bytes of the accumulated float32 gradients; other ones live for one parameter only."""
    if sharding.stage < 2:
        return trained * FLOAT32
    return 0.0 if sharding.offload else trained * FLOAT32 / devices
