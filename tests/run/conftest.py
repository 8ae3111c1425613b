"""Object storage as runs know it."""

import logging

import pytest
from upath import UPath


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    root = UPath("s3://checkpoints/run/rl")
    root.fs.mkdir("checkpoints")
    yield root
    server.stop()
