"""The figure of the guide on rewards is drawn by the code of its page, here of a model that has hardly been trained."""

from dataclasses import replace

from PIL import Image

from workflows.benchmarking import steering


def test_the_figure_is_drawn_with_the_classifiers_of_the_page(tmp_path, monkeypatch, capsys):
    guide = tmp_path / "page.md"
    guide.write_text(steering.GUIDE.read_text("utf-8"))
    monkeypatch.setattr(steering, "GUIDE", guide)
    monkeypatch.setattr(steering, "TRAINING", replace(steering.TRAINING, steps=1))
    for name, value in {"WEIGHTS": (0.0, 8.0), "CANDIDATES": (4,), "GENERATED": 8, "HELD_OUT": 4}.items():
        monkeypatch.setattr(steering, name, value)
    steering.main(tmp_path / "model")
    with Image.open(guide.with_suffix(".png")) as figure:
        assert figure.width > 500
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("k = 4")]
    rewards = [float(line.split()[-2].strip(",")) for line in lines]
    assert rewards[1] > rewards[0]  # the classifier likes what it selected
