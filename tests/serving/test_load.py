"""Many clients at once, some of which leave or talk nonsense: every answer is the one it would be alone.

`make bench` has the long version, with latencies.
"""

import asyncio
import gc
import time

from d1ray.serving.config import ServeConfig
from d1ray.serving.local import local_app
from d1ray.serving.row import Row


def rows_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is Row for thing in gc.get_objects())


def test_no_client_gets_another_answer_than_alone_and_nothing_is_left_behind(
    text_folder, listening, serving_clients
):
    before = rows_in_memory()
    app = local_app(ServeConfig(model=text_folder, limits={"rows": 20, "batch_tokens": 1500}))
    asked = serving_clients.requests(30, seed=0)
    with listening(app) as url:
        expected = serving_clients.alone(url, asked)
        assert len(set(expected)) > 20
        report = asyncio.run(serving_clients.load(url, 24, 8.0, asked, expected))
        engine = app.state.engine
        for _ in range(500):
            if not engine.tickets and not len(engine.schedule):
                break
            time.sleep(0.02)
        assert not engine.tickets and not len(engine.schedule)
    assert report.wrong == []
    assert report.left > 0 and report.statuses[400] > 0 and report.statuses[429] > 0
    assert len(report.seconds) > 10 and report.broken == 0
    assert set(report.statuses) <= {200, 400, 429}
    assert rows_in_memory() == before
