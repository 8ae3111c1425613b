"""The RL algorithms, a file each. Those that a recipe can name stand in ``d1ray.config.kinds``."""

from d1ray.config.exports import on_demand

__getattr__ = on_demand(
    {
        "config.kinds": "ALGORITHMS load_algorithm",
        "rl.algorithm": "Algorithm",
        "rl.algorithms.bgpo": "BGPO",
        "rl.algorithms.coupled_grpo": "CoupledGRPO",
        "rl.algorithms.diffu_grpo": "DiffuGRPO",
        "rl.algorithms.espo": "ESPO",
        "rl.algorithms.gdpo": "GDPO",
        "rl.algorithms.spg": "SPG",
        "rl.algorithms.tracerl": "TraceRL",
        "rl.algorithms.unigrpo": "UniGRPO",
        "rl.algorithms.wd1": "WD1",
    }
)
