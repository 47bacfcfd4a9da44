"""One denoising step of rows that unmask something, from t to s: plain, resampled (EDLM alg. 1) or exact.

In the symbols of the paper: U are the positions that the step unmasks (`state.unmasked`), x_t the tokens before it
(`state.xt`), x_0^(i) the i-th of k candidates, tau the temperature of the weights. `context` is the result of the
denoiser's `read` of x_t. A row whose logits or energies are NaN is marked as broken and unmasks nothing.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edlm import equations
from edlm.cooperative_work import Cooperative
from edlm.device_copies import sent
from edlm.interfaces import Model, NormalisedEnergy, VerifiesDrafts
from edlm.rng import Purpose
from edlm.sampling.candidates import draw_candidates, propose, score_candidates
from edlm.sampling.speculative import verify_draft
from edlm.sampling.state import StepResult, StepState


def plain_step(state: StepState, context: Tensor, model: Model) -> StepResult:
    """Draw x_U ~ p_theta(. | x_t), each position independently: masked diffusion."""
    u = state.uniforms(Purpose.CANDIDATE, 1, state.length)
    x0, log_p = propose(model.denoiser, context, state.xt, state.on_host.unmasked, u)
    return state.advanced(x0[:, 0], model.block, broken=_nan(log_p))


def resample_step(
    state: StepState,
    context: Tensor,
    model: Model,
    k: int,
    tau: float,
    chooses: Bool[Tensor, " b"],
    tokens_at_once: int | None = None,
) -> Cooperative[StepResult]:
    """Draw k candidates, weigh each by exp(-E / tau), and unmask the tokens of one at U (EDLM alg. 1).

        x_0^(1..k) ~ p_theta(. | x_t),    i ~ w_i / sum_j w_j,  w_i = exp(-E(x_0^(i), x_t, t) / tau),    x_U = x_0^(i)_U

    The choice is made by group for an energy in blocks. A group with a single new token is not resampled, which would
    only sharpen its marginal (docs/mathematics.md 4, finite k); its token is that of the first candidate. Pauses
    between calls of the energy, of at most `tokens_at_once` tokens each (None: `TOKENS_AT_ONCE`). Rows that
    `chooses`, on the host, leaves out take a plain step: their tokens are those of the first candidate.
    """
    energy, xt, block, length, host = model.energy, state.xt, model.block, state.length, state.on_host
    assert energy is not None
    joint = (equations.sum_by_group(host.unmasked.long(), block) > 1) & chooses[:, None]
    filled = host.xt == model.denoiser.mask if energy.whole_sequence else host.unmasked
    u = state.uniforms(Purpose.CANDIDATE, k, length)
    x0, log_p = draw_candidates(model.denoiser, energy, context, xt, filled, u)

    # Groups are independent given x_t, so those that are not resampled stay masked in the input of a step energy.
    new = filled if energy.whole_sequence else filled & equations.spread_groups(joint, length, block)
    joint, seen, chooses = sent([joint, new, chooses], xt.device)
    scored = x0 if energy.whole_sequence else torch.where(seen[:, None], x0, xt[:, None])
    e, distinct = yield from score_candidates(energy, scored, xt, state.t, log_p, context, tokens_at_once, new)
    e = torch.where(chooses[:, None, None], e, 0.0)
    # E = inf marks an impossible candidate; E = -inf would be an infinite weight, which is always an error.
    broken = _nan(log_p) | _nan(e) | (e == -torch.inf).flatten(1).any(dim=1)
    e = torch.where(broken[:, None, None], 0.0, e)

    log_w = equations.log_weight(e.double(), tau)  # E / tau may overflow float32
    i = torch.where(joint, equations.pick(log_w, state.uniforms(Purpose.PICK, joint.shape[1]), has_no_nan=True), 0)
    x = x0.gather(1, equations.spread_groups(i, length, block)[:, None])[:, 0]
    return replace(
        state.advanced(x, block, broken=broken),
        energy_calls=k * chooses.long(),
        energies=torch.where(joint[:, None], e, torch.nan),
        picked=i,
        ess=_mean_where(equations.effective_sample_size(log_w, has_no_nan=True), joint),
        distinct=distinct,
        candidates=x0,
    )


def exact_step(state: StepState, context: Tensor, model: Model) -> Cooperative[StepResult]:
    """Draw x_U ~ p_theta exp(-E) token by token: `resample_step` for k -> infinity, at tau = 1.

    Raise ValueError unless the energy is normalised.
    """
    energy = _normalised(model)
    u = state.uniforms(Purpose.CANDIDATE, 1, state.length)[:, 0]
    x, log_p = yield from energy.draw(state.xt, _in_order(state.on_host, model), context, u)
    return state.advanced(x, energy.block, energy_calls=1, broken=_nan(context) | _nan(log_p))


def speculative_step(state: StepState, context: Tensor, model: Model) -> Cooperative[StepResult]:
    """Draw as `exact_step` does, by verifying a draft of p_theta: the same distribution in fewer passes.

    Raise ValueError unless the energy is normalised and can verify a draft.
    """
    energy, drawn = _normalised(model), _in_order(state.on_host, model)
    if not isinstance(energy, VerifiesDrafts):
        raise ValueError(f"speculative sampling verifies a draft, and {type(energy).__name__} cannot")
    u, u_keep, u_redraw = (
        state.uniforms(purpose, 1, state.length) for purpose in (Purpose.CANDIDATE, Purpose.KEEP, Purpose.REDRAW)
    )
    draft, log_p = propose(model.denoiser, context, state.xt, drawn, u)
    verified = yield from verify_draft(
        draft[:, 0], log_p[:, 0], state.xt, drawn, context, model.denoiser, energy, u_keep[:, 0], u_redraw[:, 0]
    )
    result = state.advanced(verified.x, energy.block, broken=_nan(log_p) | verified.broken)
    return replace(result, energy_calls=verified.passes, accepted=verified.accepted)


def _normalised(model: Model) -> NormalisedEnergy:
    if not isinstance(model.energy, NormalisedEnergy):
        raise ValueError(
            f"candidates=0 samples exactly, and {type(model.energy).__name__} is not normalised; give k >= 1"
        )
    return model.energy


def _in_order(state: StepState, model: Model) -> Bool[Tensor, "b l"]:
    """Return the positions to draw in reading order: U, and for a whole sequence every masked one before its end."""
    assert model.energy is not None
    if not model.energy.whole_sequence:
        return state.unmasked
    return equations.up_to_last(state.xt == model.denoiser.mask, state.unmasked)


def _nan(values: Float[Tensor, "b ..."]) -> Bool[Tensor, " b"]:
    """Return which rows contain NaN."""
    return values.flatten(1).isnan().any(dim=1)


def _mean_where(values: Float[Tensor, "b g"], where: Bool[Tensor, "b g"]) -> Float[Tensor, " b"]:
    """Return the mean over the selected groups of each row; 1 where none is selected."""
    count = where.sum(dim=1)
    return torch.where(count > 0, (values * where).sum(dim=1) / count.clamp(min=1), 1.0)
