"""Conversion of text to the model's tokens, and back."""

from cluster.http.request_context import RequestContext
from cluster.http.schemas.responses import DetokenizeResponse, IgnoredFields, TokenizeResponse, TokenizerInfo
from cluster.http.schemas.tokenization import DetokenizeRequest, TokenizeRequest
from cluster.http.served_model import ServedModel, or_api_error


def tokenize(request: TokenizeRequest, served: ServedModel, context: RequestContext) -> TokenizeResponse:
    """Return the tokens of a text; raise APIError if the model cannot read it."""
    context.ignored = request.ignored
    served.require_named(request.model)
    tokens = _tokens(request, served)
    pieces = [served.pieces[token] for token in tokens]
    return TokenizeResponse(
        tokens=tokens,
        pieces=pieces,
        count=len(tokens),
        max_model_len=served.generator.length,
        token_strs=pieces if request.return_token_strs else None,
        edlm=IgnoredFields(ignored=list(context.ignored)),
    )


def _tokens(request: TokenizeRequest, served: ServedModel) -> list[int]:
    if request.messages is not None:
        return list(served.conversation([message.turn for message in request.messages]))
    field, text = ("prompt", request.prompt) if request.text is None else ("text", request.text)
    return list(or_api_error(field, served.generator.read, text))


def detokenize(request: DetokenizeRequest, served: ServedModel, context: RequestContext) -> DetokenizeResponse:
    """Return the text of tokens; raise APIError if one is not in the vocabulary."""
    context.ignored = request.ignored
    served.require_named(request.model)
    text = or_api_error("tokens", served.generator.tokenizer.decode, request.tokens)
    return DetokenizeResponse(text=text, prompt=text, edlm=IgnoredFields(ignored=list(context.ignored)))


def tokenizer_info(served: ServedModel) -> TokenizerInfo:
    """Return what vLLM's clients ask of a tokenizer; lm-eval's `tokenizer_backend=remote` needs it."""
    generator = served.generator
    chat = generator.denoiser.chat
    return TokenizerInfo(
        tokenizer_class=type(generator.tokenizer).__name__, chat_template=None if chat is None else chat.template
    )
