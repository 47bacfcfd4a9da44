"""A training's picture has a panel for what there is to see, and stays true to the numbers."""

import io

import numpy as np
import pytest

from cluster.tracking.training_curves import SMOOTHED_SHARE, training_curves

LOSS = {step: 3.0 - step / 100 for step in range(100)}


def test_each_kind_of_metric_has_its_panel():
    gains = {f"gain_nats/t_{t:.2f}_{t + 0.25:.2f}": LOSS for t in (0.0, 0.25, 0.5, 0.75)}
    figure = training_curves(
        {"loss_nats_per_token": LOSS, "learning_rate": {0: 1e-4, 9: 3e-4}, "seconds": LOSS, **gains}, "finetune"
    )
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["loss", "learning rate", "gain by time"]
    legend = figure.axes[2].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][-1] == "0.00 to 0.25"
    picture = io.BytesIO()
    figure.savefig(picture)
    assert picture.getvalue().startswith(b"\x89PNG")


def test_the_validation_loss_is_drawn_beside_the_training_loss():
    validation = {24: 2.9, 49: 2.7, 99: 2.6}
    figure = training_curves({"loss_nats_per_token": LOSS, "validation_nats_per_token": validation}, "pretrain")
    (axes,) = figure.axes
    *_, line = axes.lines
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == validation
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]


def test_the_smoothed_line_of_a_straight_line_is_that_line():
    figure = training_curves({"loss_nats_per_token": LOSS}, "pretrain")
    raw, smooth = (np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].lines)
    assert np.array_equal(raw, list(LOSS.values()))
    assert np.allclose(smooth[3:-3], raw[3:-3])
    assert smooth.min() >= raw.min()
    assert smooth.max() <= raw.max()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_values_that_cannot_be_drawn_leave_a_picture(value):
    figure = training_curves({"loss_nats_per_token": {0: value, 1: 1.0}, "learning_rate": {0: value}}, "odd")
    figure.savefig(io.BytesIO())


def test_nothing_to_draw_is_reported():
    with pytest.raises(ValueError, match="nothing to draw"):
        training_curves({"seconds": LOSS}, "empty")


def test_the_running_mean_is_over_the_share_of_the_points_that_the_figure_names():
    spike = {step: float(step == 500) for step in range(1000)}
    figure = training_curves({"loss_nats_per_token": spike}, "pretrain")
    smooth = np.asarray(figure.axes[0].lines[1].get_ydata(), dtype=float)
    assert np.count_nonzero(smooth) == round(SMOOTHED_SHARE * 1000) + 1
