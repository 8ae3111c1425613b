"""Gauges: a run's numbers as Ray metrics, for the Ray dashboard, Prometheus and Grafana."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any, TypeAlias

from ray.util.metrics import Gauge

from d1ray.run.metrics import gauge_of

REPEAT_S = 5.0  # Ray forgets a gauge that is not set for some 20 s
Source: TypeAlias = Callable[[], Mapping[str, float]]


class Gauges:
    """Sets gauges named as in ``d1ray.run.metrics``, again and again until ``close``.

    Args:
        run: their label ``run``.
    """

    def __init__(self, run: str):
        self.run = run
        self._stage = ""
        self._row: dict[str, float] = {}
        self._sources: list[Source] = []
        self._gauges: dict[str, Gauge] = {}
        self._over = threading.Event()
        self._setter = threading.Thread(target=self._repeat, name="gauges", daemon=True)
        self._setter.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Shows the numbers of a metrics row until the next one of its stage, or until another stage's."""
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, Real)}
        if row["stage"] != self._stage:
            self._row = {}
        self._stage, self._row = row["stage"], self._row | numbers | {"last_step_time": time.time()}
        self._set_all()

    @contextmanager
    def watching(self, source: Source) -> Iterator[None]:
        """Also shows what ``source`` gives, whenever gauges are set, while the block runs. It is called in
        another thread."""
        self._sources.append(source)
        try:
            yield
        finally:
            self._sources.remove(source)

    def close(self) -> None:
        """Stops. The gauges are gone some seconds later."""
        self._over.set()
        self._setter.join(timeout=2 * REPEAT_S)

    def _repeat(self) -> None:
        while not self._over.wait(REPEAT_S):
            self._set_all()

    def _set_all(self) -> None:
        for source in (lambda: self._row, *self._sources):
            for name, value in source().items():
                gauge, component = gauge_of(name)
                if gauge not in self._gauges:
                    self._gauges[gauge] = Gauge(gauge, tag_keys=("run", "stage", "component"))
                self._gauges[gauge].set(
                    value, tags={"run": self.run, "stage": self._stage, "component": component}
                )
