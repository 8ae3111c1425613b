"""The page on the Python API runs as it is written."""

import re
from pathlib import Path

import pytest
import torch

from d1ray.models.load import load_model
from d1ray.models.save import save_model

PAGE = Path(__file__).parents[2] / "docs" / "python-api.md"


@pytest.fixture
def folder(make_text_model, tokenizer, tmp_path):
    save_model(make_text_model(), tmp_path / "model", tokenizer)
    return tmp_path / "model"


def test_the_pages_examples_run_one_after_the_other(folder, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names = {"FOLDER": str(folder), "ADAPTER": str(tmp_path / "adapter")}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["logits"].shape == (1, 4, names["model"].config.vocab_size)
    assert names["samples"].ids.shape == names["samples"].step_map.shape == (2, 16)
    assert torch.equal(names["reference_logps"], names["logps"])  # a new adapter changes nothing
    assert load_model(tmp_path / "adapter").state_dict().keys() == names["merged"].state_dict().keys()
