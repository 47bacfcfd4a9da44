"""Scoring: likelihood bounds and energies of a text, as cooperative work between engine steps."""

from cluster.http.admission import Admission
from cluster.http.errors import APIError
from cluster.http.generation_plan import ANOTHER_DISTRIBUTION, GenerationPlan
from cluster.http.limits import request_cost as cost
from cluster.http.schemas.requests import ScoreRequest
from cluster.http.schemas.responses import ExactScore, PromptScore, ScoreResponse
from cluster.http.served_model import or_api_error
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.exact_order import FIXED_ORDER


async def answer(request: ScoreRequest, plan: GenerationPlan, admission: Admission) -> ScoreResponse:
    """Score the text given its prompt; raise APIError if they fit no canvas, cost too much or have no exact score."""
    generator = plan.served.generator
    if request.text is not None:
        field, tokens = "text", or_api_error("text", generator.read, request.text)
    else:
        field, tokens = "tokens", or_api_error("tokens", generator.read, request.tokens or ())
    prompt = () if request.prompt is None else or_api_error("prompt", generator.read, request.prompt)
    if not tokens:
        raise APIError(400, f"{field} is empty; a score needs at least 1 token", field, "invalid_value")
    if len(tokens) > generator.length:
        message = f"{field} has {len(tokens)} tokens; this model scores at most {generator.length}, so cut it"
        raise APIError(400, message, field, "invalid_value")
    if len(prompt) + len(tokens) > generator.length:
        message = (
            f"prompt has {len(prompt)} tokens and {field} {len(tokens)}; they share a canvas of {generator.length}, so "
            "cut the prompt"
        )
        raise APIError(400, message, "prompt", "invalid_value")
    plan.context.prompt_tokens = len(prompt) + len(tokens)
    exact = request.exact_order
    work = cost.of_score(len(tokens), request.draws, plan.sampler, plan.energy, generator, len(prompt), exact)
    task = or_api_error(
        "exact_order", generator.stepwise_score, tokens, plan.seed, request.draws, plan.sampler, plan.energy, prompt,
        exact,
    )  # fmt: skip
    admission.charge(plan.context, work)
    score = await admission.run(work, task, work, plan)
    return ScoreResponse(
        **plan.heading("score"),
        tokens=len(tokens),
        text=generator.tokenizer.decode(tokens),
        nelbo=_measured(score.nelbo),
        bound=_measured(score.bound),
        energies={name: _measured(value) for name, value in score.energies.items()},
        exact_order=None if score.exact_order is None else _exact(score.exact_order),
        edlm=plan.details(prompt=[generator.tokenizer.decode(prompt)] if prompt else None),
    )


def _exact(nats: float) -> ExactScore:
    return ExactScore(nats=nats, unmasking=FIXED_ORDER.name, distribution=ANOTHER_DISTRIBUTION)


def _measured(estimate: Estimate) -> PromptScore:
    return PromptScore(nats=estimate.mean, standard_error=estimate.standard_error)
