"""The config: d1's defaults, and one clear line for everything that cannot be right."""

from pathlib import Path

import pytest
import yaml

from d1ray.config.errors import ConfigError
from d1ray.config.evaluation import EvaluationConfig
from d1ray.config.recipe import apply_overrides, load_config, recipe_names, validated
from d1ray.config.rl import RLConfig
from d1ray.config.run import Config
from d1ray.config.sft import MaskedTrainingConfig


def minimal(**changes):
    return {"task": "sudoku", "model": {"path": "/models/llada"}} | changes


def test_the_defaults_are_d1s():
    rl = RLConfig()
    assert (rl.mu, rl.group_size, rl.reference_sync_updates) == (12, 6, 64)
    algorithm = rl.algorithm
    assert (algorithm.name, algorithm.advantage) == ("diffu_grpo", "mean")
    assert (algorithm.epsilon, algorithm.beta) == (0.5, 0.04)
    assert (algorithm.estimator.name, algorithm.estimator.prompt_mask_prob) == ("one_step", 0.15)
    optimizer = rl.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.betas) == (3e-6, "constant", (0.9, 0.99))
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.1, 0.2)
    sampling = rl.sampling
    assert (sampling.gen_length, sampling.steps, sampling.block_length) == (256, 128, 32)
    assert (sampling.temperature, sampling.decoding) == (0.9, "low_confidence")
    assert validated(minimal()).data.max_prompt_length == 200
    sft = MaskedTrainingConfig()
    assert (sft.optimizer.learning_rate, sft.eps) == (1e-5, 1e-3)
    assert EvaluationConfig().sampling.temperature == 0


def test_evaluation_stays_greedy_when_another_sampling_setting_is_given():
    config = validated(minimal(evaluation={"sampling": {"gen_length": 128, "steps": 64}}))
    assert config.evaluation.sampling.temperature == 0


def test_another_algorithm_s_name_takes_the_recipes_options_along_but_not_ones_own():
    psi_first = ["rl.algorithm.psi=2", "rl.algorithm.name=wd1"]
    for overrides in (psi_first, psi_first[::-1]):
        algorithm = load_config("sudoku-tiny", overrides).rl.algorithm
        assert (algorithm.name, algorithm.psi) == ("wd1", 2)
    algorithm = load_config("sudoku-tiny", ["rl.algorithm.name=diffu_grpo"]).rl.algorithm
    assert algorithm == load_config("sudoku-tiny").rl.algorithm  # its own name changes nothing


def test_an_algorithm_is_named_or_given_with_options():
    assert load_config("sudoku-tiny", ["rl.algorithm=diffu_grpo"]).rl.algorithm.beta == 0.04
    algorithm = load_config(
        "sudoku-tiny", ["rl.algorithm.beta=0", "rl.algorithm.advantage=mean_std"]
    ).rl.algorithm
    assert (algorithm.name, algorithm.beta, algorithm.advantage) == ("diffu_grpo", 0, "mean_std")
    estimator = load_config(
        "sudoku-tiny", ["rl.algorithm.estimator.mask_scope=completion"]
    ).rl.algorithm.estimator
    assert (estimator.name, estimator.prompt_mask_prob, estimator.mask_scope) == (
        "one_step",
        0.15,
        "completion",
    )


def test_what_is_named_by_an_override_can_be_refined_by_the_next():
    overrides = ["rl.algorithm=wd1", "rl.algorithm.psi=2", "task=sudoku", "task.blanks=6"]
    config = load_config("sudoku-tiny", overrides)
    assert (config.rl.algorithm.name, config.rl.algorithm.psi) == ("wd1", 2)
    assert (config.task.name, config.task.blanks) == ("sudoku", 6)


def test_a_config_read_back_from_its_own_yaml_is_the_same(tmp_path):
    config = load_config(
        "sudoku-tiny", ["rl.algorithm.epsilon=0.3", "rl.algorithm.estimator.mask_scope=completion"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(str(path)) == config


def test_a_model_is_a_folder_or_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "here").mkdir(parents=True)
    assert validated(minimal(model={"path": "models/here"})).model.path == tmp_path / "models" / "here"
    assert validated(minimal(model={"path": "GSAI-ML/LLaDA-8B"})).model.path == Path("GSAI-ML/LLaDA-8B")
    assert validated(minimal(model={"path": "gone"})).model.path == tmp_path / "gone"


def test_sft_keeps_its_learning_rate_when_another_optimiser_setting_is_given():
    config = validated(minimal(sft={"optimizer": {"weight_decay": 0.0}}))
    assert (config.sft.optimizer.learning_rate, config.sft.optimizer.max_grad_norm) == (1e-5, 1.0)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    config = load_config(name)
    assert config.run_dir == Path("runs").absolute() / name
    assert config.about
    assert config.about


def test_there_is_a_recipe():
    assert "sudoku-tiny" in recipe_names()


def test_a_recipe_file_is_loaded_by_its_path(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(minimal(seed=3)))
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.seed, config.run_dir) == (3, Path("runs/mine").absolute())


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("rl.steps=10", lambda c: c.rl.steps, 10),
        ("rl.optimizer.learning_rate=1e-4", lambda c: c.rl.optimizer.learning_rate, 1e-4),
        ("rl.optimizer.betas=[0.8, 0.9]", lambda c: c.rl.optimizer.betas, (0.8, 0.9)),
        ("rl.reference_sync_updates=null", lambda c: c.rl.reference_sync_updates, None),
        ("sft.steps=4", lambda c: c.sft.steps, 4),  # of a group that was null
        ("rl.sampling.decoding=threshold", lambda c: c.rl.sampling.decoding, "threshold"),
        ("about=a=b", lambda c: c.about, "a=b"),
        ("run_dir=/tmp/x", lambda c: c.run_dir, Path("/tmp/x")),
        ("rl.skip_zero_advantage=false", lambda c: c.rl.skip_zero_advantage, False),
    ],
)
def test_an_override_sets_its_value(override, read, value):
    assert read(load_config("sudoku-tiny", [override])) == value


def test_the_last_of_two_overrides_counts():
    assert load_config("sudoku-tiny", ["seed=1", "seed=2"]).seed == 2


def test_an_override_of_a_shared_yaml_anchor_changes_one_place():
    values = yaml.safe_load("{a: {optimizer: &fast {learning_rate: 1.0}}, b: {optimizer: *fast}}")
    apply_overrides(values, ["a.optimizer.learning_rate=2.0"])
    assert values == {"a": {"optimizer": {"learning_rate": 2.0}}, "b": {"optimizer": {"learning_rate": 1.0}}}


def test_a_config_survives_its_own_yaml():
    config = load_config("sudoku-tiny")
    dumped = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert validated(dumped) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_config("sudoku-tiny").seed = 1


WRONG = [
    # unknown keys, with what was probably meant
    ("rl.stepz=1", "unknown key rl.stepz; did you mean 'steps'?"),
    ("rll.steps=1", "unknown key rll; did you mean 'rl'?"),
    ("model.make.d_modle=8", "unknown key model.make.d_modle; did you mean 'd_model'?"),
    ("rl.sampling.temprature=1", "unknown key rl.sampling.temprature; did you mean 'temperature'?"),
    (
        "model.make.pretraining=[{stepss: 1}]",
        "unknown key model.make.pretraining.0.stepss; did you mean 'steps'",
    ),
    ("qqq=1", "unknown key qqq"),
    ("task.blank=6", "did you mean 'blanks'"),
    ("task.name=soduku", "did you mean 'sudoku'"),
    # wrong types
    ("rl.steps=ten", "rl.steps: "),
    ("rl.steps=1.5", "rl.steps: "),
    ("rl.steps=yes", "rl.steps: "),  # YAML for true
    ("rl.optimizer.betas=[0.9]", "rl.optimizer.betas"),
    ("rl=3", "rl: "),
    ("rl.sampling.decoding=best", "rl.sampling.decoding: "),
    ("sft.demonstrations=dirty", "sft.demonstrations: "),
    ("task=[1]", "task: "),
    ("model=null", "model: "),
    # out of range
    ("seed=-1", "seed: "),
    ("rl.mu=0", "rl.mu: "),
    ("rl.group_size=1", "rl.group_size: "),
    ("rl.algorithm.estimator.prompt_mask_prob=1.1", "rl.algorithm.estimator.prompt_mask_prob: "),
    ("rl.algorithm.epsilon=0", "rl.algorithm.epsilon: "),
    ("rl.algorithm.beta=-0.1", "rl.algorithm.beta: "),
    ("rl.algorithm.epsilon=.nan", "rl.algorithm.epsilon: "),
    ("rl.algorithm=diffu_grop", "rl.algorithm.name: unknown algorithm 'diffu_grop' (did you mean"),
    ("rl.algorithm.betta=1", "rl.algorithm.betta: unknown option (did you mean 'beta'?)"),
    ("rl.algorithm.advantage=median", "rl.algorithm.advantage: "),
    ("rl.algorithm.estimator=two_step", "rl.algorithm.estimator.name: unknown estimator 'two_step'"),
    ("rl.algorithm=[1]", "rl.algorithm: expected a name or a mapping"),
    ("rl.optimizer.learning_rate=.inf", "rl.optimizer.learning_rate: "),
    ("rl.optimizer.betas=[0.9, 1.0]", "rl.optimizer.betas.1: "),
    ("sft.eps=1.5", "sft.eps: "),
    ("sft.eps=0", "sft.eps: "),
    # impossible combinations
    ("rl.sampling.block_length=7", "block_length=7 does not divide gen_length=20"),
    (
        "rl.sampling={gen_length: 16, block_length: 8, steps: 7}",
        "steps=7 must be a multiple of the 2 block(s)",
    ),
    ("rl.sampling={gen_length: 16, block_length: 16, steps: 40}", "steps=40"),
    ("model.make.n_heads=3", "n_heads=3 must split d_model=128"),
    ("model.make={d_model: 6, n_heads: 2}", "heads of even size"),
    ("model.path=/models/llada", "exactly one of model.path"),
    ("model={}", "exactly one of model.path"),
    ("model.make.pretraining=[{lora: {}}]", "unknown key model.make.pretraining.0.lora"),
    ("sft={patience: 2}", "patience counts validations; set validate_every too"),
    ("rl.lora.r=0", "rl.lora.r: "),
    ("rl.lora.dropout=0.05", "unknown key rl.lora.dropout"),
    ("rl.lora.targets=[]", "rl.lora.targets: "),
    ("data.max_prompt_length=45", "is 65 tokens, more than model.make.max_sequence_length=64"),
    ("cluster={colocated: true, max_generators: 3}", "give generators, not max_generators"),
    ("cluster={colocated: true, generators: 1, learners: 2}", "learners=2 is more than generators=1"),
    ("cluster={colocated: true, generator_gpus: 0.5, learner_gpus: 0.6}", "learner_gpus=0.6 are more than 1"),
    ("rl.offload=true", "rl.offload=true keeps sharded weights on the CPU; set rl.sharding=fsdp too"),
    ("sft={offload: true}", "set sft.sharding=fsdp too"),
    # not overrides
    ("rl.steps", "override 'rl.steps' is not of the form key=value"),
    ("=3", "is not of the form key=value"),
    ("rl.steps=[1", "rl.steps: '[1' is not a YAML value"),
    ("seed.x=1", "seed is a value, not a group"),
    ("model.make.pretraining.0.steps=3", "lists are replaced whole"),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_a_wrong_setting_is_one_line_that_names_it(override, message):
    # `seed.x` needs a seed in the recipe: overrides are applied in order.
    with pytest.raises(ConfigError) as error:
        load_config("sudoku-tiny", ["seed=0", override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_colocated_actors_cannot_overlap():
    with pytest.raises(ConfigError, match=r"take turns, so nothing overlaps; set rl\.staleness=0") as error:
        load_config("sudoku-tiny", ["cluster.colocated=true", "rl.staleness=1"])
    assert "\n" not in str(error.value)


def test_an_adapter_is_not_broadcast():
    with pytest.raises(ConfigError, match=r"only the adapter is published, which is small") as error:
        load_config("sudoku-tiny", ["cluster.broadcast=true", "rl.lora.r=4"])
    assert "\n" not in str(error.value)


def test_two_faults_are_both_named():
    with pytest.raises(ConfigError, match=r"rl\.mu: .*; unknown key rl\.stepz"):
        validated(minimal(rl={"mu": 0, "stepz": 1}))


def test_an_unknown_recipe_names_the_near_and_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"unknown recipe 'sudoku-tini'; did you mean '.*known recipes: .*sudoku"
    ):
        load_config("sudoku-tini")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("a: [", "is not YAML"),
        ("- a", "is not a mapping"),
        ("", "is not a mapping"),
    ],
)
def test_a_recipe_file_that_cannot_be_read_is_one_line(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["task", "model"])
def test_what_a_config_cannot_do_without_is_named(missing):
    with pytest.raises(ConfigError, match=f"{missing}: "):
        validated({key: value for key, value in minimal().items() if key != missing})


def test_a_prompt_and_completion_that_just_fit_are_accepted():
    # 44 + 20 = 64 = the recipe's max_sequence_length
    config = load_config("sudoku-tiny", ["data.max_prompt_length=44"])
    assert isinstance(config, Config)
