"""A process that compiles an expression or a schema with `outlines-core`, within limits of time and memory.

The library sets no limits: an expression of twenty letters may have more states than any memory holds. The process
reads a line of JSON and writes one, with the table of the automaton behind it, or the reason why there is none.
"""

import array
import json
import resource
import sys

NUL = 0  # begins what is compiled: no text has it, so that a match begins nowhere else
# A number of which every parser makes a finite one: its digits and its exponent are limited, which JSON does not limit.
NUMBER = r"(-)?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-][0-9]{1,2})?"
WHITE_SPACE = set(b" \t\n\r")
NOT_IN_STRINGS = {*range(1, 32), ord('"'), ord("\\")}  # bytes that JSON escapes


def main() -> None:
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.buffer.readline())
    seconds, memory = request["seconds"], request["memory"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import outlines_core

    vocabulary = outlines_core.Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})

    def compiled(expression: str) -> "outlines_core.Index":
        # The end of the text is part of the expression: else an alternative would end where an earlier one does.
        return outlines_core.Index(rf"\x00(?:{expression})\z", vocabulary)

    def bytes_of(index: "outlines_core.Index") -> set[int]:
        return {byte for following in index.get_transitions().values() for byte in following} - {NUL, 256}

    try:
        for pattern in request.get("patterns", ()):
            if bytes_of(compiled(pattern)) & NOT_IN_STRINGS:
                sys.stdout.buffer.write(json.dumps({"pattern": pattern}).encode() + b"\n")
                return
        expression = request.get("regex")
        if expression is None:
            space = request.get("whitespace")
            if space is not None and not bytes_of(compiled(space)) <= WHITE_SPACE:
                sys.stdout.buffer.write(json.dumps({"whitespace": True}).encode() + b"\n")
                return
            grouped = None if space is None else f"(?:{space})"
            built = outlines_core.json_schema.build_regex_from_schema(request["schema"], grouped)
            expression = built.replace(outlines_core.json_schema.NUMBER, NUMBER)
        index = compiled(expression)
    except MemoryError:  # the caller names the limit
        raise
    except BaseException as error:  # ValueError, and the exception of a panic, which is no Exception
        sys.stdout.buffer.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    transitions = index.get_transitions()
    states = {state: number for number, state in enumerate(transitions)}
    table = array.array("i", [-1]) * (256 * len(states))
    for state, following in transitions.items():
        for byte, to in following.items():
            if byte < 256:  # the other one is the library's end of text
                table[256 * states[state] + byte] = states[to]
    answer = {
        "start": table[256 * states[index.get_initial_state()] + NUL],
        "final": [states[state] for state in index.get_final_states()],
        "states": len(states),
    }
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + table.tobytes())


if __name__ == "__main__":
    main()
