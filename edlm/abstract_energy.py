"""What every energy is: a number for each group of each candidate, LOW where the candidate is likely text."""

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn


class AbstractEnergy(nn.Module):
    """An energy; anything callable with this signature and these attributes serves, a lookup table too."""

    drafts: bool
    block: int | None = None
    normalised: bool = False  # True: Z = 1 exactly, and `drawing` samples p_theta exp(-E) itself
    proposal: "AbstractEnergy | None"
    """A normalised energy, from whose law candidates are drawn and against which E is a residual; None: p_theta."""

    def __init__(self) -> None:
        super().__init__()
        self.proposal = None  # not in the class, where it would hide the module that a subclass sets

    @abstractmethod
    def forward(
        self,
        x: Int[Tensor, "b k l"],
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        log_p: Float[Tensor, "b k g"],
        context: Float[Tensor, "b l h"],
    ) -> Float[Tensor, "b k g"]:
        """E of k candidates of each sequence, by group.

        `log_p` is log p_theta (or of the proposal's law) of the candidates' drawn tokens, summed by group; `context` is
        what the denoiser read in x_t. Candidates of one sequence fill the same positions; where x_t is not masked, x_t
        is read.
        """
