"""Energies: the residual E of p(x0 | xt) = p_theta(x0 | xt) exp(-E) / Z, this project's and the paper's."""
