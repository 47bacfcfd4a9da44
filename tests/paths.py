"""Where tests find the project's files, and the corpora and golden values that may lie beside a checkout."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SMALLEST = PROJECT / "tests" / "workflows" / "smallest.yaml"
"""An experiment of every stage, in about a minute."""
TWO_ENERGIES = PROJECT / "tests" / "workflows" / "two_energies.yaml"
"""An experiment of every stage with fewer energies and workers, for every change of the code."""
ONE_ENERGY = PROJECT / "tests" / "workflows" / "one_energy.yaml"
"""An experiment of one denoiser and one energy, without an evaluation."""

SHARED = PROJECT.parent / "shared"
"""Not part of the project: a test that needs it skips where it is absent."""
DATA = SHARED / "data"
GPT2 = DATA / "gpt2"
