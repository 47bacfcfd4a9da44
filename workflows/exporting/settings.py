"""Settings of an exported model: frozen dataclasses, in place of the validated ones of `edlm.config`."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


class SettingsError(ValueError):
    """Error in the settings; the message names the setting, the value and what is allowed."""


ConfigurationError = SettingsError  # the name in `edlm.config`


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Return `cls` as a frozen dataclass."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def replaced(settings: T, source: str, **changes: Any) -> T:  # noqa: ARG001
    """Return the settings with the changed fields."""
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]
