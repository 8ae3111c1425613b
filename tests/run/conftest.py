"""Object storage as runs know it."""

import logging

import pytest
from s3fs import S3FileSystem
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
    S3FileSystem.clear_instance_cache()  # that of an earlier server
    name = f"checkpoints-{port}"  # moto's servers know each other's buckets
    root = UPath(f"s3://{name}/run/rl")
    root.fs.mkdir(name)
    yield root
    server.stop()
