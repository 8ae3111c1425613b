"""The size and place of low-rank adapters (LoRA, arXiv 2106.09685)."""

from pydantic import Field

from d1ray.config.settings import PositiveInt, Strict


class LoRAConfig(Strict):
    """The adapters' size and place. The defaults are those of d1's RL stage (Appendix B)."""

    r: PositiveInt = Field(128, description="rank")
    alpha: PositiveInt = Field(64, description="B A is scaled by alpha / r")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "up_proj"),
        min_length=1,
        description="the projections that get an adapter",
    )
