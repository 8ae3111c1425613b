"""What sampling costs beside the forward passes it cannot do without.

Times are ratios to bare full forwards ``model(input_ids)`` of the same model and batch, as many as there are
denoising steps, measured in turns in one run.
"""

import statistics
import time

import pytest
import torch

from d1ray.config.sampling import SamplerConfig
from d1ray.diffusion.sampler import sample
from d1ray.models.initialise import initialise
from d1ray.models.llada import LLaDA
from d1ray.models.llada_config import LLaDAConfig

VOCABULARY, PROMPT, ROWS, STEPS, ROUNDS = 2048, 128, 6, 128, 3
TARGETS = {"none": 0.85, "prefix": 0.35, "dual": 0.18}
BARE = 16  # full forwards measured before and after each completion


def build() -> LLaDA:
    """A random LLaDA that never says EOS, or rows would leave and flatter the sampler."""
    config = LLaDAConfig(
        d_model=256,
        n_layers=4,
        n_heads=8,
        mlp_hidden_size=768,
        vocab_size=VOCABULARY,
        max_sequence_length=1024,
        mask_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    return initialise(LLaDA(config), 0).eval()


def different_prompts() -> list[list[int]]:
    """All different, or the shared first forward would flatter the sampler."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY - 1, (ROWS, PROMPT), generator=generator).tolist()


def cpu_seconds(work) -> float:
    """Of this process, which has one thread: what else the machine runs does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.timeout(1200)
def test_cost_relative_to_bare_forwards():
    model, prompts = build(), different_prompts()
    ids = torch.tensor([prompt + [model.config.mask_token_id] * 256 for prompt in prompts])

    @torch.inference_mode()
    def bare():
        for _ in range(BARE):
            model(ids)

    def completions(cache):
        config = SamplerConfig(gen_length=256, steps=STEPS, block_length=32, temperature=0.9, cache=cache)
        samples = sample(model, prompts, config, range(ROWS))
        assert samples.forwards.tolist() == [STEPS] * ROWS

    bare()  # the first passes touch memory for the first time
    seconds = {cache: [] for cache in TARGETS}
    ratios = {cache: [] for cache in TARGETS}
    before = cpu_seconds(bare)
    for _ in range(ROUNDS):
        for cache in TARGETS:
            seconds[cache].append(cpu_seconds(lambda cache=cache: completions(cache)))
            after = cpu_seconds(bare)
            ratios[cache].append(seconds[cache][-1] / ((before + after) / 2 / BARE * STEPS))
            before = after
    print(f"\n{ROWS} rows, prompt {PROMPT}, 256 tokens, {STEPS} steps, one thread, {ROUNDS} rounds")
    print(f"{'cache':<8}{'CPU s':>9}{'ratio':>8}{'lowest':>8}{'highest':>9}{'target':>8}")
    for cache, target in TARGETS.items():
        values = ratios[cache]
        print(
            f"{cache:<8}{statistics.median(seconds[cache]):>9.2f}{statistics.median(values):>8.3f}"
            f"{min(values):>8.3f}{max(values):>9.3f}{target:>8.2f}"
        )
    medians = {cache: statistics.median(values) for cache, values in ratios.items()}
    assert all(medians[cache] <= target for cache, target in TARGETS.items()), medians
