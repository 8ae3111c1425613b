"""The engine: full queues, clients that leave, steps that fail, weights that change."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import aclosing

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.serving.config import LimitsConfig
from d1ray.serving.denoise import denoise
from d1ray.serving.engine import FAILURES, HANGS_S, Engine
from d1ray.serving.generation import Generation, Progress, Refused
from d1ray.serving.weights import Weights


def generation(length: int = 16, seed: int = 0, **changes) -> Generation:
    config = SamplerConfig(gen_length=length, steps=length, block_length=4, temperature=1.0)
    return Generation(
        **{"prompt": (5, 6, 7), "config": config, "limit": length, "seed": (seed, 0), **changes}
    )


@pytest.fixture
def hold(monkeypatch):
    """Denoising waits, once it is called, until this event is set."""
    event = threading.Event()

    def denoise_later(rows):
        assert event.wait(60)
        return denoise(rows)

    monkeypatch.setattr("d1ray.serving.engine.denoise", denoise_later)
    yield event
    event.set()


@pytest.fixture
def make_engine(make_text_model, tokenizer):
    engines = []

    def make(seed: int = 0, **limits) -> Engine:
        engines.append(Engine(Weights(make_text_model(seed), f"v{seed}"), tokenizer, LimitsConfig(**limits)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


async def all_of(engine: Engine, asked: Generation) -> list[Progress]:
    return [step async for step in engine.generate(asked)]


async def last_of(engine: Engine, asked: Generation) -> Progress:
    return (await all_of(engine, asked))[-1]


async def idle(engine: Engine) -> None:
    for _ in range(500):
        if not engine.tickets and not len(engine.schedule):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("rows are left behind")


def test_progress_begins_with_acceptance_and_ends_with_a_reason(make_engine):
    engine = make_engine()
    steps = asyncio.run(all_of(engine, generation()))
    assert len(steps) == 2
    assert steps[0] == Progress("v0", exact=engine.weights.exact, seconds=steps[0].seconds)
    assert steps[1].finish in ("stop", "length") and steps[1].text


def test_text_and_events_come_where_they_are_wanted(make_engine):
    engine = make_engine()
    whole = asyncio.run(last_of(engine, generation()))
    streamed = asyncio.run(all_of(engine, generation(text=True)))
    assert "".join(step.text for step in streamed) == whole.text
    assert all(step.text or step.finish for step in streamed[1:])
    events = asyncio.run(all_of(engine, generation(text=True, events=True)))
    assert [step.step.number for step in events[1:]] == list(range(whole.forwards))
    assert "".join(step.text for step in events) == whole.text


def test_what_is_too_much_is_refused_with_a_time_to_come_back(make_engine, hold):
    async def ask() -> None:
        engine = make_engine(rows=2)
        long = [asyncio.create_task(last_of(engine, generation(32, seed))) for seed in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await last_of(engine, generation())
        assert 1 <= refused.value.retry_after <= 60
        hold.set()
        await asyncio.gather(*long)
        assert (await last_of(engine, generation())).finish

    asyncio.run(ask())


def test_a_completion_is_given_up_when_nobody_waits_for_it(make_engine):
    async def ask() -> None:
        engine = make_engine(batch_tokens=64)
        async with aclosing(engine.generate(generation(32, text=True))) as steps:
            await anext(steps)
            assert len(engine.tickets) == 1
        await idle(engine)
        tasks = [asyncio.create_task(last_of(engine, generation(32, seed))) for seed in range(6)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await idle(engine)
        assert (await last_of(engine, generation())).finish

    asyncio.run(ask())


def test_a_failing_step_fails_its_requests_and_no_others(make_engine):
    async def ask() -> None:
        engine = make_engine()
        good = await last_of(engine, generation())
        weight = engine.weights.model.head_weight
        saved = weight.detach().clone()
        weight.data.fill_(torch.nan)
        for _ in range(FAILURES):
            assert engine.healthy
            with pytest.raises(FloatingPointError):
                await last_of(engine, generation())
        assert not engine.healthy  # and Ray Serve would replace the replica
        weight.data.copy_(saved)
        assert (await last_of(engine, generation())).text == good.text
        assert engine.healthy
        await idle(engine)

    asyncio.run(ask())


def test_weights_change_between_completions_never_within_one(make_engine, make_text_model):
    async def ask() -> None:
        engine, other = make_engine(0), make_engine(1)
        old, new = await last_of(engine, generation(32)), await last_of(other, generation(32))
        assert (old.version, new.version) == ("v0", "v1") and old.text != new.text
        async with aclosing(engine.generate(generation(32, events=True))) as steps:
            await anext(steps)
            await anext(steps)
            engine.swap(Weights(make_text_model(1), "v1"))
            beside = asyncio.create_task(last_of(engine, generation(32)))
            async for step in steps:
                assert step.version == "v0"
        assert step.text == old.text
        assert (await beside).version == "v1" and (await beside).text == new.text
        assert await engine.version() == "v1"

    asyncio.run(ask())


def test_closing_fails_what_is_under_way(make_engine, hold):
    async def ask() -> None:
        engine = make_engine()
        task = asyncio.create_task(last_of(engine, generation(32)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        while not engine.closed:
            await asyncio.sleep(0.01)
        hold.set()
        await closing
        with pytest.raises(RuntimeError, match="closed"):
            await task
        with pytest.raises(RuntimeError, match="closed"):
            await last_of(engine, generation())

    asyncio.run(ask())


def test_an_idle_engine_holds_no_weights_but_its_own(make_engine, make_text_model):
    engine = make_engine()
    asyncio.run(all_of(engine, generation()))
    old = weakref.ref(engine.weights)
    engine.swap(Weights(make_text_model(1), "v1"))
    for _ in range(500):
        gc.collect()
        if old() is None:
            break
        time.sleep(0.01)
    assert old() is None


def test_a_step_that_hangs_is_not_healthy(make_engine, hold, monkeypatch):
    async def ask() -> None:
        engine = make_engine()
        task = asyncio.create_task(last_of(engine, generation()))
        while engine.step_began is None:
            await asyncio.sleep(0.01)
        assert engine.healthy
        engine.step_began -= HANGS_S
        assert not engine.healthy
        hold.set()
        assert (await task).finish and engine.healthy

    asyncio.run(ask())
