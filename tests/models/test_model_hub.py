"""Models by hub id, through the real huggingface_hub: its cache, offline, and a hub on this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants

from d1ray.config.errors import ModelError
from d1ray.models.architectures import read_config
from d1ray.models.load import check_weights, load_model
from d1ray.models.save import save_model
from d1ray.models.tokenizer import load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def text_model(make_text_model):
    return make_text_model()


@pytest.fixture
def folder(tmp_path, text_model, tokenizer):
    save_model(text_model, tmp_path / "saved", tokenizer)
    return tmp_path / "saved"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache; the tests' environment is offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert constants.is_offline_mode()
    return tmp_path / "cache"


def test_a_model_in_the_cache_is_loaded_offline_by_its_hub_id(cache, folder, text_model, tokenizer):
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    ids = torch.tensor([[4, 11, 5]])
    assert torch.equal(load_model("org/tiny")(ids), text_model(ids))
    assert load_tokenizer("org/tiny").get_vocab() == tokenizer.get_vocab()
    assert read_config(Path("org/tiny")) == text_model.config
    assert set(check_weights("org/tiny")) == set(text_model.state_dict())


def test_a_folder_comes_before_a_hub_model_of_that_name(cache, folder, text_model, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "org").mkdir()
    shutil.copytree(folder, folder.parent / "org" / "tiny")
    assert read_config("org/tiny") == text_model.config


@pytest.mark.parametrize("read", [load_model, load_tokenizer, read_config, check_weights])
def test_a_model_that_is_neither_cached_nor_reachable_is_one_clear_error(cache, read):
    with pytest.raises(
        ModelError, match=r"org/absent is not a folder here, and .* hub failed: .*HF_HUB_OFFLINE"
    ):
        read("org/absent")


@pytest.mark.parametrize("name", ["a", "a/b/c", "org/with space", "../up", ""])
def test_what_can_be_no_hub_id_is_never_asked_for(cache, name, tmp_path, monkeypatch):
    monkeypatch.chdir(cache.parent)
    with pytest.raises(ModelError, match=r"not there; give a model folder or a hub id|holds no config\.json"):
        load_model(name)


class Hub(BaseHTTPRequestHandler):
    """The three questions that a snapshot download asks, answered from ``folder``."""

    def __init__(self, folder, *args):
        self.folder = folder
        super().__init__(*args)

    def do_GET(self):
        parts = self.path.split("?")[0].split("/")[1:]
        if parts[:4] == ["api", "models", "org", "tiny"]:
            files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
            tree = [
                {
                    "type": "file",
                    "path": str(path.relative_to(self.folder)),
                    "size": path.stat().st_size,
                    "oid": path.name,
                }
                for path in files
            ]
            self.answer(json.dumps(tree if "tree" in parts else {"id": "org/tiny", "sha": COMMIT}).encode())
        elif parts[:3] == ["org", "tiny", "resolve"]:
            self.answer((self.folder / "/".join(parts[4:])).read_bytes())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, body):
        self.send_response(200)
        self.send_header("ETag", f'"{abs(hash(body))}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


# In a process of its own, because huggingface_hub reads its environment when it is imported.
DOWNLOADS = """
import json, sys
from pathlib import Path
from d1ray.config.errors import ModelError
from d1ray.models import load_model, load_tokenizer

def cached():
    return sorted({path.name for path in Path(sys.argv[1]).glob("hub/models--*/snapshots/*/**/*")})

load_tokenizer("org/tiny")
after_tokenizer = cached()
head = load_model("org/tiny").model.transformer.ff_out.weight[3].tolist()
after_model = cached()
try:
    load_model("org/unknown")
except ModelError as error:
    print(json.dumps([after_tokenizer, after_model, head, str(error)]))
"""


@pytest.fixture
def downloads(tmp_path, folder):
    """What ``DOWNLOADS`` finds on a hub that has code, a pickle and a subfolder beside the model."""
    for name in ("modeling_llada.py", "pytorch_model.bin", "original/model.safetensors", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"raise SystemExit")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder))
    Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", DOWNLOADS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_download_is_the_model_without_code_pickle_or_subfolder(downloads, text_model):
    after_tokenizer, after_model, head, error = downloads
    assert after_tokenizer == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert after_model == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert head == text_model.model.transformer.ff_out.weight[3].tolist()
    assert re.fullmatch(r"org/unknown is not a folder here, and .* failed: .*404.*Check the name.*", error)
