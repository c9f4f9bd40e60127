"""What a model may do beside RecBole's methods: look at a run's keys before anything is trained, tell of itself after."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class HasResultFields(Protocol):
    """A model that adds fields of its own to ``result.json``."""

    def result_fields(self) -> dict[str, Any]:
        """``llm``, ``rec_model`` and ``decoding`` where it has them, and whatever else belongs there."""


@runtime_checkable
class TellsIdentity(Protocol):
    """A stock model whose answers depend on more than its weights and its keys."""

    def identity(self) -> dict[str, Any]:
        """What must be the same where its checkpoint is loaded, as JSON has it."""


class ChecksConfig:
    """Put before a model's base class; ``RunConfig`` calls ``check`` as soon as all keys are settled."""

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse, by a ``UserError``, keys that do not fit together; single values are checked already."""
