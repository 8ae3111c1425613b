"""A server that follows a run serves its newest checkpoint, and says which."""

import logging
import shutil
import time

import openai
import pytest

from d1ray.config.errors import ModelError
from d1ray.models.save import save_model
from d1ray.run import checkpoint_writer
from d1ray.serving.config import ServeConfig
from d1ray.serving.follow import first_weights, newest_weights
from d1ray.serving.local import local_app
from d1ray.serving.weights import fingerprint


@pytest.fixture
def run_folder(tmp_path):
    return tmp_path / "mine"


@pytest.fixture
def save(run_folder, make_text_model, tokenizer):
    """``save(step, seed)``: a checkpoint with the weights of ``seed``."""

    def write(step: int, seed: int):
        root = run_folder / "checkpoints" / "rl"
        return checkpoint_writer.save(root, step, make_text_model(seed), tokenizer, {}, {"step": step}, 10)

    return write


@pytest.fixture
def config(run_folder) -> ServeConfig:
    return ServeConfig(model=run_folder, follow=True, follow_every_s=0.05)


def test_the_newest_checkpoint_that_is_whole_is_served(config, save):
    save(1, 1)
    first = first_weights(config)
    assert first.version.startswith("step-1-")
    assert newest_weights(config, first.version) is None
    damaged = save(2, 2)
    (damaged / "model" / "model.safetensors").write_bytes(b"x")
    assert newest_weights(config, first.version) is None
    assert first_weights(config).version == first.version
    save(3, 3)
    assert newest_weights(config, first.version).version.startswith("step-3-")


def test_a_step_that_was_done_again_is_another_version(config, save):
    shutil.rmtree(save(1, 1))
    save(1, 2)
    second = first_weights(config).version
    shutil.rmtree(config.model / "checkpoints")
    save(1, 1)
    assert first_weights(config).version != second


def test_a_run_without_checkpoints_has_its_sft_model_served_until_there_is_one(
    config, save, run_folder, make_text_model, tokenizer
):
    with pytest.raises(ModelError, match="no config"):
        first_weights(config)
    save_model(make_text_model(5), run_folder / "models" / "sft", tokenizer)
    assert first_weights(config).version == fingerprint(run_folder / "models" / "sft")
    save(1, 1)
    assert first_weights(config).version.startswith("step-1-")


def test_checkpoints_elsewhere_are_found_as_the_runs_config_says(config, save, run_folder, tmp_path):
    save(4, 1)
    (run_folder / "checkpoints").rename(tmp_path / "elsewhere")
    (run_folder / "config.yaml").write_text(f"checkpoint_path: {tmp_path / 'elsewhere'}\n")
    assert newest_weights(config).version.startswith("step-4-")


def test_answers_change_with_the_weights_and_carry_their_version(config, save, listening, caplog):
    save(1, 1)
    with caplog.at_level(logging.INFO), listening(local_app(config)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def ask():
            return client.completions.create(model="mine", prompt="2+2=", max_tokens=8, seed=1)

        def ask_until(step: int):
            for _ in range(400):
                answer = ask()
                if answer.system_fingerprint.startswith(f"step-{step}-"):
                    return answer
                time.sleep(0.05)
            raise AssertionError(f"step {step} was never served")

        first = ask()
        assert first.system_fingerprint.startswith("step-1-")
        save(2, 2)
        second = ask_until(2)
        assert second.choices[0].text != first.choices[0].text
        broken = save(3, 3)
        (broken / "model" / "config.json").unlink()  # as if it were being removed
        save(4, 1)
        assert ask_until(4).choices[0].text == first.choices[0].text
        shutil.rmtree(config.model)
        assert ask().system_fingerprint.startswith("step-4-")
