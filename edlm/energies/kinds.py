"""The energies E(x_0, x_t, t): step energies of this project, whole-sequence ones of the paper.

    p(x | x_t) is proportional to p_theta(x | x_t) exp(-E(x, x_t, t)): LOW energy is likely text.

All energies have one call signature; `whole_sequence` says what they are functions of:
  step energies (`whole_sequence` False) see this step's new tokens and masks elsewhere (`edlm.energies.step`);
  whole-sequence energies (`whole_sequence` True) see every position filled (EDLM sec. 4).
Each is one file, with its network and its configuration.
"""

from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import AutoregressiveEnergyConfig, BidirectionalEnergyConfig, CarryOverEnergyConfig

EnergyConfig = (
    StepEnergyConfig
    | ConditionalEnergyConfig
    | ResidualEnergyConfig
    | BidirectionalEnergyConfig
    | AutoregressiveEnergyConfig
    | CarryOverEnergyConfig
    | EDLMEnergyConfig
)
