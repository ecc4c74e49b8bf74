"""The one engine that memory holds, at whichever model and depth is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from helios_batch.engine.contender import Contender
from helios_batch.engine.device import Resources
from helios_batch.engine.engine import Engine
from helios_batch.errors import ModelError


class SoleEngine:
    """Moves the engine between depths of a model; for another model it loads another in its place.

    Args:
        contenders: by name.
        resources: of the engine.
        states: whether memory goes into deepening under running sequences.
    """

    def __init__(
        self, contenders: Mapping[str, Contender], resources: Resources, states: bool = False
    ) -> None:
        self.contenders, self.resources = contenders, resources
        self._states = states
        self._engine: Engine | None = None
        self.model = ""

    @property
    def current(self) -> Engine:
        """The engine as it is.

        Raises:
            ValueError: nothing was asked for yet.
        """
        if self._engine is None:
            raise ValueError("no engine is loaded")
        return self._engine

    @property
    def is_loaded(self) -> bool:
        """Whether there is an engine."""
        return self._engine is not None

    def at(self, model: str, layers: int) -> Engine:
        """Return the engine at a depth of a model; what it was before is gone.

        Raises:
            ModelError: the weights can't be read; no engine is loaded then.
            ResourceError: the budget does not hold it.
        """
        contender = self.contenders[model]
        if self._engine is not None and self.model == model:
            try:
                self._engine.move_to(layers, contender.exits.get(layers))
            except ModelError:
                self.drop()
                raise
            return self._engine
        self._engine = None  # the old weights go before the new ones come
        states = self._states and len(contender.depths) > 1
        self._engine, self.model = contender.engine(layers, self.resources, states), model
        return self._engine

    def drop(self) -> None:
        """Let the engine go, as it is not what it should be."""
        self._engine = None

    def holds(self, model: str, layers: int) -> bool:
        """Whether the memory budget holds a depth of a model."""
        return self.contenders[model].holds(layers, self.resources)
