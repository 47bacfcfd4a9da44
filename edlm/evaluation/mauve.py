"""Divergence of generated from data texts (MAUVE), on a judge's features of whole texts.

MAUVE (Pillutla et al. 2021): both sets are quantised together, and the area under the curve of the two divergences from
every mixture is between 0 and 1, 1 for equal histograms. It depends on the judge, on the number of texts and on the
number of clusters: values are comparable only if all three are equal, and should be read beside the value of other data
texts. Normalisation, principal components and the curve are those of the package `mauve-text`; its k-means starts from
other centres, so that values are close to but not equal to its own.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import normalize
from torch import Tensor

from edlm.rng import Purpose, seeds, uniforms

TEXTS_IN_A_CLUSTER = 10  # of each set, on average
SCALING = 5.0  # c of the curve (exp(-c KL(Q | R)), exp(-c KL(P | R)))
MIXTURES = 25
VARIANCE_KEPT = 0.9  # by the principal components of the normalised features
STARTS = 5  # k-means runs, of which the best is kept
ROUNDS = 500
RESAMPLES = 200


@dataclass(frozen=True)
class Mauve:
    """The area under the divergence curve, with everything that it depends on except the judge."""

    value: float
    standard_error: float
    """Over bootstrap resamples of both sets of texts, with the clusters fixed."""
    clusters: int
    generated_texts: int
    data_texts: int


def mauve_on_judge_features(
    generated: Float[Tensor, "n h"], data: Float[Tensor, "m h"], seed: int, clusters: int | None = None
) -> Mauve:
    """Compute MAUVE of two sets of texts, on features of one judge (`Quality.features`).

    `clusters` defaults to a tenth of the smaller set, at least 2. Raise ValueError for features that are not finite or
    come from two judges, for fewer than 2 clusters, and for fewer texts than clusters.
    """
    k = clusters or max(2, round(min(len(generated), len(data)) / TEXTS_IN_A_CLUSTER))
    if generated.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"features of {generated.shape[1]} and {data.shape[1]} channels: one judge must read both sets"
        )
    if k < 2 or min(len(generated), len(data)) < k:
        raise ValueError(
            f"{len(generated)} generated and {len(data)} data texts for {k} clusters: give each set as many texts as "
            "there are clusters at least, and 2 clusters or more"
        )
    features = torch.cat([generated, data]).double().cpu().numpy()
    if not np.isfinite(features).all():
        raise ValueError("features are not finite: the judge overflowed")
    labels = _quantised(_principal(features), k, seed)
    p, q = labels[: len(generated)], labels[len(generated) :]
    value = _area(_histograms(p[None], k), _histograms(q[None], k)).item()
    resampled = _area(_histograms(_resampled(p, seed, 0), k), _histograms(_resampled(q, seed, 1), k))
    return Mauve(value, resampled.std().item(), k, len(generated), len(data))


def _area(p: Float64[Tensor, "b k"], q: Float64[Tensor, "b k"]) -> Float64[Tensor, " b"]:
    """Return the area under the divergence curve by trapezoids between the mixtures and the two ends on the axes."""
    w = torch.linspace(1e-6, 1 - 1e-6, MIXTURES, dtype=torch.float64)[:, None, None]
    mixture = w * p + (1 - w) * q
    x, y = (torch.exp(-SCALING * _divergence(histogram, mixture)) for histogram in (q, p))
    zero, one = torch.zeros_like(x[:1]), torch.ones_like(x[:1])
    # From w near 0, where the mixture is q and x is 1, to w near 1.
    return -torch.trapezoid(torch.cat([zero, y, one]), torch.cat([one, x, zero]), dim=0)


def _divergence(p: Float64[Tensor, "b k"], r: Float64[Tensor, "w b k"]) -> Float64[Tensor, "w b"]:
    """Return KL(p | r) in nats; r must be positive wherever p is."""
    mass = p > 0
    return torch.where(mass, p * (torch.where(mass, p, 1.0) / torch.where(mass, r, 1.0)).log(), 0.0).sum(dim=-1)


def _principal(features: Float64[np.ndarray, "n h"]) -> Float64[np.ndarray, "n c"]:
    """Project unit-length features on the leading principal components that hold nine tenths of the variance."""
    x = normalize(features)
    with np.errstate(invalid="ignore"):  # equal texts have no variance to divide by: one component is kept
        fitted = PCA(VARIANCE_KEPT, svd_solver="full").fit(x)
    return fitted.transform(x)  # equal rows stay equal, which those of `fit_transform` need not


def _quantised(x: Float64[np.ndarray, "n c"], k: int, seed: int) -> Int64[Tensor, " n"]:
    """Return the cluster of every row, from the k-means run with the least squared distance."""
    state = int(seeds(seed, 0, 0, Purpose.CENTRE)) % 2**32  # scikit-learn takes 32 bits
    with warnings.catch_warnings():
        # Repeated texts may leave fewer distinct rows than clusters: the other clusters are empty in both histograms.
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        runs = KMeans(k, n_init=STARTS, max_iter=ROUNDS, tol=0.0, random_state=state)  # pyright: ignore[reportArgumentType]
        return torch.from_numpy(runs.fit_predict(x)).long()


def _histograms(labels: Int64[Tensor, "b n"], k: int) -> Float64[Tensor, "b k"]:
    counts = torch.zeros(len(labels), k, dtype=torch.float64)
    return counts.scatter_add(1, labels, torch.ones_like(labels, dtype=torch.float64)) / labels.shape[1]


def _resampled(labels: Int64[Tensor, " n"], seed: int, which: int) -> Int64[Tensor, "b n"]:
    """Draw as many texts as there are, with replacement, RESAMPLES times."""
    u = uniforms(seed, torch.arange(RESAMPLES), which, Purpose.RESAMPLE, (len(labels),))
    return labels[(u * len(labels)).long()]
