"""A section of a config: frozen, strict about its keys, and aware of which of its keys were ever read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr


class Section(BaseModel):
    """Base of every options class.

    Fields are read as attributes; `unread()` then tells the keys that were set and never looked at:
    an option that nothing reads is a lie, and the run reports it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    has_methods: ClassVar[bool] = False
    """Whether unknown keys are the names of methods, each holding that method's own options."""

    _read: set[str] = PrivateAttr(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("_") and name in type(self).model_fields:
            self.__pydantic_private__["_read"].add(name)  # type: ignore[index]
        return value

    def over(self, base: Mapping[str, Any]) -> Self:
        """What this section says explicitly, on top of `base`. Reading a key of the result is reading it here, and only that:
        a copy reads nothing, else every key would count as read once it was copied."""
        said = {name: self.__dict__[name] for name in self.model_fields_set & type(self).model_fields.keys()}
        told = {name: _over(value, base.get(name)) for name, value in said.items() if value is not None}
        laid = type(self)(**{**base, **told})
        laid._read = self._read
        return laid

    @classmethod
    def is_section(cls, name: str) -> bool:
        """Whether the field `name` is itself a section."""
        annotation = cls.model_fields[name].annotation
        return isinstance(annotation, type) and issubclass(annotation, Section)

    def unread(self, prefix: str = "") -> list[str]:
        """Dotted names of the keys that were set explicitly and never read, this section's children included."""
        dead = []
        for name in sorted(self.model_fields_set):
            value = self.__dict__.get(name)
            if isinstance(value, Section):
                dead += value.unread(f"{prefix}{name}.")
            elif name not in self._read:
                dead.append(prefix + name)
        return dead


def _over(value: Any, base: Any) -> Any:
    """A section within a section is laid key by key as well."""
    return value.over(base) if isinstance(value, Section) and isinstance(base, Mapping) else value
