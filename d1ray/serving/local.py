"""One process, no Ray: the API and the engine together, for trying out and for tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
import uvicorn
from fastapi import FastAPI

from d1ray.evaluation.config import model_folder
from d1ray.models.tokenizer import load_tokenizer
from d1ray.serving.api import create_app
from d1ray.serving.asking import Asking
from d1ray.serving.config import ServeConfig, read_keys
from d1ray.serving.engine import Engine
from d1ray.serving.follow import Follower, first_weights


def start_engine(config: ServeConfig) -> tuple[Engine, Follower | None]:
    """The engine of one replica, and what keeps its weights new.

    Raises:
        ModelError: there is no such model.
    """
    torch.set_num_threads(config.threads)
    engine = Engine(first_weights(config), load_tokenizer(model_folder(config.model)), config.limits)
    return engine, Follower(config, engine) if config.follow else None


def local_app(config: ServeConfig) -> FastAPI:
    """The application with an engine in this process, which ends with it; the engine is ``app.state.engine``.

    Raises:
        ModelError, ConfigError: there is no such model, or no key in the file of keys.
    """
    keys = read_keys(config.api_key_file)
    engine, follower = start_engine(config)
    asking = Asking(config, engine.tokenizer, engine.weights.model.config)
    app = create_app(config, asking, engine, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if follower is not None:
            follower.close()
        engine.close()

    app.router.lifespan_context = lifespan
    app.state.engine = engine
    return app


def run(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
        ModelError, ConfigError: as ``local_app``.
    """
    app = local_app(config)
    print(f"serving {config.served_name} at http://{config.host}:{config.port}", flush=True)
    uvicorn.run(app, host=config.host, port=config.port, log_level="warning", server_header=False, ws="none")
