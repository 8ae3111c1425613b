"""Peak memory of log-probabilities and their backward pass at LLaDA's vocabulary, measured in processes of
their own: never ``[rows, L, V]``."""

import subprocess
import sys

import pytest

MEASURE = """
import sys, torch
from d1ray.diffusion import one_step_logps
from d1ray.models import LLaDA, LLaDAConfig, initialise

torch.set_num_threads(2)
torch.manual_seed(0)
VOCABULARY, ROWS, LENGTH, PROMPT = 126_464, 8, 256, 16
config = LLaDAConfig(
    d_model=256, n_layers=2, n_heads=4, mlp_hidden_size=512, vocab_size=VOCABULARY,
    max_sequence_length=1024, mask_token_id=VOCABULARY - 1, eos_token_id=0, pad_token_id=0,
)
model = LLaDA(config)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.02)
    parameter.grad = torch.zeros_like(parameter)
ids = torch.randint(0, 1000, (ROWS, PROMPT + LENGTH))
ids[:, PROMPT:] = config.mask_token_id
completions = torch.randint(0, VOCABULARY, (ROWS, LENGTH))

def peak_kib():
    # getrusage's ru_maxrss would include the peak of the process that started this one.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak_kib()
if sys.argv[1] == "naive":
    logits = model(ids)[:, PROMPT:]
    logps = logits.log_softmax(-1).gather(-1, completions[..., None]).squeeze(-1)
else:
    logps = one_step_logps(model, ids, completions)
logps.mean().backward()
norm = sum(float(p.grad.double().pow(2).sum()) for p in model.parameters()) ** 0.5
print((peak_kib() - before) * 1024, float(logps.double().mean()), norm)
"""


def measured(way: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, way], capture_output=True, text=True, timeout=300, check=True
    )
    return [float(value) for value in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_peak_memory_is_at_most_a_quarter_of_the_naive_path():
    naive_bytes, *naive = measured("naive")
    ours_bytes, *ours = measured("ours")
    print(f"\npeak above the model: naive {naive_bytes / 2**20:.0f} MiB, ours {ours_bytes / 2**20:.0f} MiB")
    assert ours == pytest.approx(naive, rel=1e-4)  # mean log-probability, norm of the gradient
    assert ours_bytes <= naive_bytes / 4
