"""The automaton of a request's constraint, compiled, or the reason why no text of the request satisfies it."""

import torch

from edlm.constraints.automaton import TokenAutomaton
from edlm.constraints.constraint import Constraint
from edlm.inference.components import ModelComponents
from edlm.inference.request import Request


def automaton_of(request: Request, components: ModelComponents) -> TokenAutomaton | None:
    """Return the automaton of the request's constraint, from the model's cache; None for a request without one.

    Raise ConfigurationError for a constraint that cannot be compiled, or that no text of the request satisfies.
    """
    if request.constraint is None:
        return None
    automaton = components.automata.compiled(request.constraint, *_begins_and_ends(request), request.stop)
    tokens = request.known if request.max_tokens is None else [None] * request.max_tokens
    canvas = torch.tensor([components.mask if token is None else token for token in tokens])
    Constraint(automaton).require_possible(canvas, components.mask)
    return automaton


def is_compiled(request: Request, components: ModelComponents) -> bool:
    """Return whether `automaton_of` has nothing to compile."""
    return request.constraint is None or components.automata.has(
        request.constraint, *_begins_and_ends(request), request.stop
    )


def _begins_and_ends(request: Request) -> tuple[bool, bool]:
    """Return whether no token precedes the text that the constraint is on, and whether the text may end early."""
    completes = request.max_tokens is not None
    return not (completes and request.known), completes
