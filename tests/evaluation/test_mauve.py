import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mauve import compute_mauve

from edlm.evaluation.mauve import SCALING, _area, _principal, _quantised, mauve_on_judge_features

histograms = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)


def normalised(counts: list[int]) -> torch.Tensor:
    return torch.tensor([counts], dtype=torch.float64) / sum(counts)


def normal(n: int, seed: int, shift: float = 0.0, channels: int = 6) -> torch.Tensor:
    x = torch.randn(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Away from the origin, where normalisation tears apart.
    return x + torch.tensor([3.0, shift, *[0.0] * (channels - 2)], dtype=torch.float64)


@given(histograms)
def test_equal_histograms_have_area_one(counts):
    assert _area(normalised(counts), normalised(counts)).item() == pytest.approx(1)


@settings(max_examples=50)
@given(histograms, histograms)
def test_the_area_is_between_zero_and_one_and_the_same_both_ways(first, other):
    p, q = normalised(first), normalised(other)
    area = _area(p, q).item()
    assert 0 < area <= 1 + 1e-12
    assert _area(q, p).item() == pytest.approx(area)


def test_histograms_that_share_nothing_have_the_area_of_the_bare_curve():
    # x = (1 - w)^c and y = w^c: the area is c B(c + 1, c).
    c = SCALING
    exact = c * math.exp(math.lgamma(c + 1) + math.lgamma(c) - math.lgamma(2 * c + 1))
    assert _area(normalised([1, 2, 0, 0]), normalised([0, 0, 3, 1])).item() == pytest.approx(
        exact, rel=0.03
    )  # 25 mixtures


def test_the_area_of_a_fine_curve_is_the_integral():
    p, q = normalised([4, 1, 0, 3]), normalised([1, 2, 2, 1])
    w = (torch.arange(100_000, dtype=torch.float64) + 0.5)[:, None] / 100_000
    r = w * p + (1 - w) * q
    x = torch.exp(-SCALING * torch.special.xlogy(q, q / r).sum(-1))
    y = torch.exp(-SCALING * torch.where(p > 0, torch.special.xlogy(p, p / r), 0).sum(-1))
    assert _area(p, q).item() == pytest.approx(torch.trapezoid(y.flip(0), x.flip(0)).item(), abs=5e-3)


def test_texts_of_the_same_distribution_are_nearer_than_texts_of_another():
    data = normal(300, 0)
    values = [mauve_on_judge_features(normal(300, 1, shift), data, seed=0).value for shift in (0.0, 1.0, 2.0, 6.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.9
    assert values[-1] < 0.1


def test_the_value_states_what_it_depends_on_and_is_a_function_of_the_seed():
    actual = mauve_on_judge_features(normal(120, 0), normal(80, 1), seed=3)
    assert (actual.clusters, actual.generated_texts, actual.data_texts) == (8, 120, 80)
    assert actual == mauve_on_judge_features(normal(120, 0), normal(80, 1), seed=3)
    assert actual != mauve_on_judge_features(normal(120, 0), normal(80, 1), seed=4)
    assert mauve_on_judge_features(normal(120, 0), normal(80, 1), seed=3, clusters=5).clusters == 5


def test_the_bootstrap_error_is_the_spread_over_sets_of_texts():
    actual = [mauve_on_judge_features(normal(200, s, 1.5), normal(200, 100 + s), seed=0) for s in range(30)]
    spread = torch.tensor([mauve.value for mauve in actual]).std().item()
    claimed = sum(mauve.standard_error for mauve in actual) / len(actual)
    assert 0.6 < claimed / spread < 1.7


def package_value(generated: torch.Tensor, data: torch.Tensor, clusters: int, seed: int) -> SimpleNamespace:
    return compute_mauve(generated.numpy(), data.numpy(), num_buckets=clusters, seed=seed)


@pytest.mark.parametrize(("generated", "data", "clusters"), [(90, 90, 2), (200, 120, 3), (60, 300, 3)])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_the_package_mauve_text_has_the_same_value_where_clusters_are_beyond_doubt(generated, data, clusters, seed):
    """Both find the same clusters; what is left is float32 in the package's labels, and rounding."""
    centres = 50 * torch.eye(6, dtype=torch.float64)[:clusters]
    of_generated, of_data = (
        torch.arange(n) ** 2 % (clusters + shift) % clusters for n, shift in ((generated, 1), (data, 5))
    )
    first, other = normal(generated, 3) + centres[of_generated], normal(data, 4) + centres[of_data]
    ours = mauve_on_judge_features(first, other, seed, clusters)
    assert ours.value < 0.99
    assert ours.value == pytest.approx(package_value(first, other, clusters, seed % 2**31).mauve, abs=1e-9)


@pytest.mark.parametrize(("generated", "data", "channels"), [(100, 100, 6), (150, 100, 6), (60, 200, 32)])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_package_mauve_text_agrees_within_the_spread_of_its_seeds(generated, data, channels, shift):
    """K-means of one cloud has many good results: values spread over seeds, and the means of both are compared.

    0.03 allows for the starts: k-means++ here, uniformly drawn rows there.
    """
    first, other = normal(generated, 1, shift, channels), normal(data, 2, 0.0, channels)
    runs = range(8)
    ours = [mauve_on_judge_features(first, other, seed) for seed in runs]
    theirs = torch.tensor([package_value(first, other, ours[0].clusters, seed).mauve for seed in runs])
    values = torch.tensor([run.value for run in ours])
    standard_error = ((values.var() + theirs.var()) / len(runs)).sqrt().item()
    assert abs(values.mean() - theirs.mean()).item() < 3 * standard_error + 0.03


@pytest.mark.parametrize("seed", range(4))
def test_the_package_mauve_text_has_the_same_area_for_the_same_histograms(seed):
    package = package_value(normal(80, seed, 1.0), normal(120, 10 + seed), 8, seed)
    p, q = torch.from_numpy(package.p_hist)[None], torch.from_numpy(package.q_hist)[None]
    assert _area(p, q).item() == pytest.approx(package.mauve, abs=1e-12)


def test_clusters_far_apart_are_found():
    x = 50 * np.eye(6).repeat(20, axis=0) + normal(120, 0).numpy()
    for seed in range(5):
        labels = _quantised(x, 6, seed).view(6, 20)
        assert (labels == labels[:, :1]).all()
        assert labels[:, 0].unique().numel() == 6


def test_every_seed_has_starts_of_its_own_also_beyond_32_bits():
    x = normal(200, 0).numpy()
    labels = [_quantised(x, 12, seed) for seed in (0, 1, 2**32, -1)]
    assert torch.equal(labels[0], _quantised(x, 12, 0))
    assert len({tuple(label.tolist()) for label in labels}) == 4


def test_kmeans_ends_where_every_row_is_nearest_to_the_mean_of_its_cluster():
    x = normal(150, 2)
    labels = _quantised(x.numpy(), 7, 0)
    means = torch.stack([x[labels == label].mean(dim=0) for label in range(7)])
    assert torch.equal(torch.cdist(x, means).argmin(dim=1), labels)


def test_the_directions_that_vary_most_are_kept():
    angle = 0.2 * normal(400, 0)[:, 2:5] * torch.tensor([1.0, 0.7, 0.05], dtype=torch.float64)
    far = torch.cat([torch.ones(400, 1, dtype=torch.float64), angle], dim=1)
    kept = torch.from_numpy(_principal(far.numpy()))
    assert kept.shape == (400, 2)
    around = far / far.norm(dim=1, keepdim=True)
    whole = (around - around.mean(dim=0)).square().sum()
    assert kept[:, 0].square().sum() > kept[:, 1].square().sum()
    assert 0.9 < kept.square().sum() / whole < 1


def test_texts_that_are_all_alike_are_one_cluster():
    assert mauve_on_judge_features(torch.ones(20, 3), torch.ones(20, 3), seed=0).value == pytest.approx(1)


def test_a_text_that_is_repeated_leaves_clusters_empty_and_is_far_from_the_data():
    repeated = torch.tensor([[1.0, 2.0, 0, 0, 0, 0]], dtype=torch.float64).expand(40, 6)
    assert mauve_on_judge_features(repeated, normal(40, 0), seed=0).value < 0.1
    assert mauve_on_judge_features(repeated, repeated[:20], seed=0).clusters == 2


def test_the_length_of_a_feature_vector_does_not_count():
    first, other = normal(100, 0), normal(100, 1, 1.0)
    stretched = first * torch.linspace(0.5, 5, 100, dtype=torch.float64)[:, None]
    value = mauve_on_judge_features(first, other, seed=0).value
    assert mauve_on_judge_features(stretched, other, seed=0).value == pytest.approx(value)


def test_what_cannot_be_compared_is_refused():
    x = normal(40, 0)
    with pytest.raises(ValueError, match="features of 6 and 5 channels: one judge must read both"):
        mauve_on_judge_features(x, x[:, :5], seed=0)
    with pytest.raises(ValueError, match="40 generated and 3 data texts for 4 clusters"):
        mauve_on_judge_features(x, x[:3], seed=0, clusters=4)
    with pytest.raises(ValueError, match="1 generated and 40 data texts for 2 clusters"):
        mauve_on_judge_features(x[:1], x, seed=0)
    with pytest.raises(ValueError, match="for 1 clusters"):
        mauve_on_judge_features(x, x, seed=0, clusters=1)
    with pytest.raises(ValueError, match="not finite"):
        mauve_on_judge_features(x * torch.inf, x, seed=0)
