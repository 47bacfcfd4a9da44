"""ASGI middleware: access log, request guard, API keys, disconnects."""
