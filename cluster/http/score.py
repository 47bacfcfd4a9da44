"""Scoring: likelihood bounds and energies of a text, as cooperative work between engine steps."""

from cluster.http.errors import APIError
from cluster.http.generation_plan import GenerationPlan
from cluster.http.limits import request_cost as cost
from cluster.http.limits.request_submission import Admission
from cluster.http.schemas.requests import ScoreRequest
from cluster.http.schemas.responses import PromptScore, ScoreResponse
from cluster.http.served_model import or_refuse
from edlm.likelihood.estimate import Estimate


async def answer(request: ScoreRequest, plan: GenerationPlan, admission: Admission) -> ScoreResponse:
    """Score the text; raise APIError if it does not fit a canvas or costs too much."""
    generator = plan.served.generator
    if request.text is not None:
        field, tokens = "text", or_refuse("text", generator.read, request.text)
    else:
        field, tokens = "tokens", or_refuse("tokens", generator.read, request.tokens or ())
    if not tokens:
        raise APIError(400, f"{field} is empty; a score needs at least 1 token", field, "invalid_value")
    if len(tokens) > generator.length:
        message = f"{field} has {len(tokens)} tokens; this model scores at most {generator.length}, so cut it"
        raise APIError(400, message, field, "invalid_value")
    plan.context.prompt_tokens = len(tokens)
    work = cost.of_score(len(tokens), request.draws, plan.sampler, plan.energy, generator)
    admission.charge(plan.context, work)
    task = generator.stepwise_score(tokens, plan.seed, request.draws, plan.sampler, plan.energy)
    score = await admission.measured(work, task, work, plan)
    return ScoreResponse(
        **plan.heading("score"),
        tokens=len(tokens),
        text=generator.tokenizer.decode(tokens),
        nelbo=_measured(score.nelbo),
        bound=_measured(score.bound),
        energies={name: _measured(value) for name, value in score.energies.items()},
        edlm=plan.details(),
    )


def _measured(estimate: Estimate) -> PromptScore:
    return PromptScore(nats=estimate.mean, standard_error=estimate.standard_error)
