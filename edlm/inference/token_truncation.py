"""Truncation of the tokens' distributions (top-k, nucleus): a generator that draws from ANOTHER DISTRIBUTION.

Only what tokens are drawn from is truncated: p_theta for candidates (for a residual energy its proposal), and an energy
itself where it is sampled exactly, token by token. Energies weigh the candidates as they are. So p_theta exp(-E) is
restricted to texts of likely tokens, and no candidate becomes impossible because two networks disagree on which tokens
are likely. Bounds measured without truncation do not hold here.
"""

from edlm.inference.generator import TextGenerator
from edlm.inference.token_temperature import with_heads


def truncated(generator: TextGenerator, top_k: int | None, top_p: float) -> TextGenerator:
    """Return the generator that draws each token from the `top_k` likeliest (None: all), and of those from the nucleus.

    The nucleus is the fewest of them with probability `top_p` together. Weights are shared. Verification of speculative
    drafts would redraw from the whole distribution: draw exactly without it.
    """
    return with_heads(generator, top_k=top_k, top_p=top_p)
