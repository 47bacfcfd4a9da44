"""FastAPI app around one engine: routes, middleware and API documentation."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from cluster.http import chat as chats
from cluster.http import completions, tokenization
from cluster.http import infill as infills
from cluster.http import playground_page as page
from cluster.http import score as scores
from cluster.http.admission import STOPPING, Admission
from cluster.http.body import JsonRoute
from cluster.http.completions import Completions
from cluster.http.constraint_compiler import ConstraintCompiler
from cluster.http.errors import HANDLERS, APIError
from cluster.http.generation import stream
from cluster.http.generation_plan import GenerationPlan, plan_generation
from cluster.http.infill import Infills
from cluster.http.limits.settings import RequestLimits
from cluster.http.metrics.engine_metrics import EngineMetrics
from cluster.http.metrics.instruments import Metrics
from cluster.http.middleware.access_log import AccessLog
from cluster.http.middleware.api_keys import APIKeys
from cluster.http.middleware.client_disconnect import ClientDisconnect
from cluster.http.middleware.head_requests import Head
from cluster.http.middleware.request_guard import OPEN, RequestGuard
from cluster.http.request_context import request_context
from cluster.http.schemas.chat import ChatRequest
from cluster.http.schemas.requests import (
    CompletionRequest,
    GenerationRequest,
    InfillRequest,
    ScoreRequest,
    StreamOptions,
)
from cluster.http.schemas.responses import (
    ChatResponse,
    CompletionResponse,
    DetokenizeResponse,
    ErrorResponse,
    Health,
    InfillResponse,
    ModelList,
    ModelObject,
    Readiness,
    ScoreResponse,
    TokenizeResponse,
    TokenizerInfo,
    Version,
)
from cluster.http.schemas.tokenization import DetokenizeRequest, TokenizeRequest
from cluster.http.served_model import ServedModel
from cluster.http.streaming.sse_events import EventStream
from edlm.inference.engine import InferenceEngine

VERSION = "1"  # of the API
READY = ("/health", "/ping")  # paths of vLLM's probes
HUNG_SECONDS = 10.0  # without progress while there is work, after which /readyz fails
MEANINGS = {
    400: "Invalid request: the body is not JSON, a value is wrong, or the whole costs too much.",
    401: "The API key is missing or wrong.",
    403: "The Host header is not accepted.",
    404: "Unknown route or model.",
    408: "The body was not received in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The queue is full, or the API key has reached its rate limit; Retry-After says when to retry.",
    431: "The headers are too large.",
    500: "The server failed.",
    503: "The engine failed, is stopping, or is not ready.",
    504: "The deadline passed.",
}
ALWAYS = (403, 404, 431, 500)
READ = (*ALWAYS, 401)
POSTED = (*READ, 400, 408, 413, 415)
WORKED = (*POSTED, 429, 503, 504)


class Endpoint:
    """Route handlers: validate the request, run it in the engine and build the response."""

    def __init__(self, engine: InferenceEngine, request_limits: RequestLimits, metrics: Metrics) -> None:
        self.engine, self.request_limits, self.metrics = engine, request_limits, metrics
        self.admission = Admission(engine, request_limits, metrics)
        self.constraints = ConstraintCompiler(self.admission)
        self.engine_metrics = EngineMetrics(engine, metrics)
        self.warm = False
        """Whether the warm-up has finished; /readyz returns 503 until then."""
        self._since = int(time.time())
        self._served = ServedModel(engine.model)

    @property
    def served(self) -> ServedModel:
        """Model for new requests."""
        model = self.engine.model
        if self._served.model is not model:
            self._served = ServedModel(model)
        return self._served

    async def complete(self, request: CompletionRequest, http: Request) -> Any:
        """Complete a prompt, or fill between a prompt and a suffix; with `stream`, send text once it is certain."""
        return await self._written(request, http, completions.prepare, states=False)

    async def chat(self, request: ChatRequest, http: Request) -> Any:
        """Generate the next message of a conversation; with `stream`, send its text once it is certain."""
        return await self._written(request, http, chats.prepare, states=False)

    async def require_chat(self) -> None:
        """Raise APIError unless the model chats, also before the body of the request is read."""
        self.served.require_chat()

    async def infill(self, request: InfillRequest, http: Request) -> Any:
        """Fill the gaps of a text; with `stream`, send every denoising state."""
        return await self._written(request, http, infills.prepare, states=True)

    async def score(self, request: ScoreRequest, http: Request) -> ScoreResponse:
        """Score a text: bounds on its log-likelihood, and its energies."""
        return await scores.answer(request, self._plan(request, http), self.admission)

    async def tokenize(self, request: TokenizeRequest, http: Request) -> TokenizeResponse:
        """Tokenize a text."""
        return await asyncio.to_thread(tokenization.tokenize, request, self.served, request_context(http.scope))

    async def detokenize(self, request: DetokenizeRequest, http: Request) -> DetokenizeResponse:
        """Decode tokens to text."""
        return await asyncio.to_thread(tokenization.detokenize, request, self.served, request_context(http.scope))

    async def tokenizer_info(self) -> TokenizerInfo:
        """Describe the tokenizer."""
        return tokenization.tokenizer_info(self.served)

    async def models(self) -> ModelList:
        """List the served model."""
        return ModelList(data=[self._model()])

    async def model(self, model: str) -> ModelObject:
        """Describe the model of that name."""
        self.served.require_named(model)
        return self._model()

    async def ready(self) -> Readiness:
        """Report readiness and the served model."""
        served, engine = self.served, self.engine
        if engine.closing:
            raise APIError(503, "the server is stopping", code=STOPPING)
        if not self.warm or not engine.alive:
            message = "the engine has not started yet" if engine.alive else "the engine has failed"
            raise APIError(503, message, code="not_ready")
        if engine.backlog_seconds > 0 and engine.beat_age_seconds > HUNG_SECONDS:
            raise APIError(503, f"the engine has made no progress for {HUNG_SECONDS:g} s", code="not_ready")
        return Readiness(
            model=served.name,
            model_version=served.version,
            digest=served.digest,
            warm=self.warm,
            alive=engine.alive,
            beat_age_seconds=round(engine.beat_age_seconds, 3),
            backlog_seconds=round(engine.backlog_seconds, 3),
        )

    def _model(self) -> ModelObject:
        name = self.served.name
        return ModelObject(id=name, created=self._since, root=name, edlm=self.served.facts)

    def _plan(self, request: GenerationRequest | ScoreRequest, http: Request) -> GenerationPlan:
        context = request_context(http.scope)
        return plan_generation(
            request, self.served, context, self.admission.deadline(context, request.edlm.timeout_seconds)
        )

    async def _written(
        self, request: Any, http: Request, make: Callable[[Any, GenerationPlan], Completions | Infills], states: bool
    ) -> Any:
        """Return the response, complete or streamed; `states`: default of `stream_options.denoising`."""
        request.require_consistent()
        self.admission.require_room(request.texts, request.plural)
        prepared = await asyncio.to_thread(make, request, self._plan(request, http))
        prepared = await self.constraints.priced(prepared)
        self.admission.charge(prepared.plan.context, prepared.work)
        prepared = await prepared.scored(self.admission)
        if not request.stream:
            return await prepared.answer(self.admission)
        options = request.stream_options or StreamOptions()
        pieces = stream(prepared, self.admission, options, states if options.denoising is None else options.denoising)
        await anext(pieces)  # returns when the first text starts; until then an error can still set the HTTP status
        keep_alive = self.request_limits.keep_alive_seconds
        return EventStream(pieces, prepared.plan.deadline, prepared.plan.context, keep_alive)


def make_app(endpoint: Endpoint) -> FastAPI:
    """Return the app with its routes and middleware; raise BadKeyFile if the file of API keys is invalid."""
    # No documentation pages: they load scripts from other hosts. The schema itself is at /openapi.json.
    app = FastAPI(title="edlm", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.route_class = JsonRoute
    keys = None if endpoint.request_limits.keys is None else APIKeys(endpoint.request_limits.keys)
    # From the innermost to the outermost.
    app.add_middleware(Head)
    app.add_middleware(ClientDisconnect)
    app.add_middleware(RequestGuard, hosts=endpoint.request_limits.hosts, keys=keys)
    app.add_middleware(AccessLog, metrics=endpoint.metrics)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    event_schema = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    streamed = {200: {"content": {"text/event-stream": {"itemSchema": event_schema}}}}
    post, get = app.post, app.get
    post("/v1/completions", response_model=CompletionResponse, responses=streamed | error_responses(WORKED))(
        endpoint.complete
    )
    post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses=streamed | error_responses(WORKED),
        dependencies=[Depends(endpoint.require_chat)],
    )(endpoint.chat)
    post("/v1/infill", response_model=InfillResponse, responses=streamed | error_responses(WORKED))(endpoint.infill)
    post("/v1/score", responses=error_responses(WORKED))(endpoint.score)
    for prefix in ("/v1", ""):  # vLLM's routes have no version
        post(f"{prefix}/tokenize", responses=error_responses(POSTED))(endpoint.tokenize)
        post(f"{prefix}/detokenize", responses=error_responses(POSTED))(endpoint.detokenize)
    get("/tokenizer_info", responses=error_responses(READ))(endpoint.tokenizer_info)
    get("/v1/models", responses=error_responses(READ))(endpoint.models)
    get("/v1/models/{model}", responses=error_responses(READ))(endpoint.model)
    get("/metrics", include_in_schema=False)(_scraped(endpoint.engine_metrics, endpoint.metrics))
    for path in ("/readyz", *READY):
        get(path, responses=error_responses((*ALWAYS, 503)))(endpoint.ready)
    post("/ping", responses=error_responses((*ALWAYS, 408, 413, 503)))(endpoint.ready)
    get("/version", responses=error_responses((*ALWAYS, 401)))(version)
    get("/healthz", responses=error_responses(ALWAYS))(health)
    get("/", include_in_schema=False)(_always(page.page(page.assembled())))
    _document_keys(app.openapi())
    _remove_validation_errors(app.openapi())
    return app


def _document_keys(document: dict[str, Any]) -> None:
    """Add the routes' API key requirement to the document; FastAPI does not know of the middleware that checks it."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, route in document["paths"].items():
        for operation in route.values():
            operation["security"] = [{}] if path in OPEN else [{"key": []}, {}]


def _remove_validation_errors(document: dict[str, Any]) -> None:
    """Remove FastAPI's own 422 responses from the document; they are 400 here."""
    for name in ("HTTPValidationError", "ValidationError"):
        del document["components"]["schemas"][name]
    for route in document["paths"].values():
        for operation in route.values():
            operation["responses"].pop("422", None)


async def health() -> Health:
    """Report that the process is alive."""
    return Health()


async def version() -> Version:
    """Report the API version."""
    return Version(version=VERSION)


def error_responses(statuses: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route for its documentation."""
    return {status: {"model": ErrorResponse, "description": MEANINGS[status]} for status in sorted(statuses)}


def _always(response: Response) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return response

    return answer


def _scraped(engine_metrics: EngineMetrics, metrics: Metrics) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        engine_metrics.update()
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    return answer
