"""Settings of `d1ray serve`, and what is refused before anything starts."""

from pathlib import Path

import pytest

from d1ray.config.errors import ConfigError
from d1ray.serving.config import is_loopback, read_keys, serve_config


def test_only_this_machine_is_let_in_unless_there_are_keys(tmp_path):
    assert serve_config(Path("m"), []).host == "127.0.0.1"
    for host in ("0.0.0.0", "::", "192.168.1.5", "server.example"):
        with pytest.raises(ConfigError, match="api_key_file"):
            serve_config(Path("m"), [], host=host)
        assert serve_config(Path("m"), [], host=host, api_key_file=tmp_path / "keys").host == host
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))


def test_keys_are_lines(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the team\nabc\n\n  def  \n")
    assert read_keys(file) == (b"abc", b"def")
    assert read_keys(None) == ()
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "other")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("limits.max_token=5", "did you mean 'max_tokens'"),
        ("replicas={min: 3, max: 2}", "replicas.min=3 is more than replicas.max=2"),
        ("sampling.cfg_scale=1", "guidance is not served"),
        ("sampling.block_length=7", "does not divide"),
        ("exact=true;threads=2", "threads=2 share the work by its size"),
        ("precision=fp8", "'fp32' or 'bf16'"),
        ("port=70000", "65535"),
    ],
)
def test_a_wrong_setting_is_a_line_that_says_what_is_right(override, said):
    with pytest.raises(ConfigError) as caught:
        serve_config(Path("m"), override.split(";"))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_is_called_by_its_folder_or_its_name():
    assert serve_config(Path("runs/mine"), []).served_name == "mine"
    assert serve_config(Path("GSAI-ML/LLaDA-8B-Instruct"), []).served_name == "LLaDA-8B-Instruct"
    assert serve_config(Path("runs/mine"), ["name=teacher"]).served_name == "teacher"
