"""Names of modules that programs and users' files knew: they import what is there now, and say where."""

import importlib
import warnings

import pytest

import d1ray


@pytest.mark.parametrize("old", sorted(d1ray.MOVED))
def test_an_earlier_name_is_the_same_module_with_a_warning(old: str) -> None:
    if old == "d1ray.evaluation.harness":
        pytest.importorskip("lm_eval")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        d1ray_before = importlib.import_module(d1ray.MOVED[old])
        assert importlib.import_module(old) is d1ray_before
    assert d1ray_before.__spec__ is not None and d1ray_before.__spec__.name == d1ray.MOVED[old]
    here = [str(w.message) for w in said if w.category is DeprecationWarning and "is now" in str(w.message)]
    assert here in ([f"{old} is now {d1ray.MOVED[old]}"], [])  # once a process


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("d1ray.config", "Config RLConfig SFTConfig ClusterConfig LoRAConfig load_config"),
        ("d1ray.models", "LLaDA Dream load_model load_tokenizer save_model encode_prompt"),
        ("d1ray.diffusion", "SamplerConfig sample token_logps one_step_logps ESTIMATORS"),
        ("d1ray.diffusion.estimators", "AnyEstimator OneStep Elbo Trajectory load_estimator"),
        ("d1ray.tasks", "Task Example Score Split TASKS load_task GSM8K Sudoku"),
        ("d1ray.rl.algorithms", "ALGORITHMS DiffuGRPO WD1 load_algorithm"),
    ],
)
def test_a_package_gives_its_public_names(package: str, names: str) -> None:
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in names.split())
    with pytest.raises((AttributeError, ImportError), match="no_such_name"):
        _ = module.no_such_name
