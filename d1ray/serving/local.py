"""One process, no Ray: the API and the engine together, for trying out and for tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
import uvicorn
from fastapi import FastAPI

from d1ray.evaluation_config import model_folder
from d1ray.models import load_tokenizer
from d1ray.serving.api import create_app
from d1ray.serving.asking import Asking
from d1ray.serving.config import ServeConfig, read_keys
from d1ray.serving.engine import Engine
from d1ray.serving.weights import load_weights


def local_app(config: ServeConfig) -> FastAPI:
    """The application with an engine in this process, which ends with it."""
    folder = model_folder(config.model)
    keys = read_keys(config.api_key_file)
    torch.set_num_threads(config.threads)
    weights, tokenizer = load_weights(folder, config.precision, config.exact), load_tokenizer(folder)
    engine = Engine(weights, tokenizer, config.limits)
    app = create_app(config, Asking(config, tokenizer, weights.model.config), engine, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app.router.lifespan_context = lifespan
    app.state.engine = engine
    return app


def run(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM."""
    app = local_app(config)
    uvicorn.run(app, host=config.host, port=config.port, log_level="warning", server_header=False)
