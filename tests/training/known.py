"""A training problem with a known solution."""

import torch
from torch import Tensor, nn

from kandinsky22.training.loop import Batch, Objective, Recipe, step_generator

RECIPE = Recipe(batch=8, learning_rate=0.05, warmup=2, weight_decay=0.0, bfloat16=False, ema_decay=0.9)


def line_fit(recipe: Recipe = RECIPE, width: int = 2) -> tuple[nn.Module, Objective]:
    """A linear layer and the objective of fitting x -> 2 x0 - 3 x1 + 1, which ignores further columns of x."""
    torch.manual_seed(0)
    network = nn.Linear(width, 1)

    def draw(step: int) -> Batch:
        generator = step_generator(recipe.seed, step)
        x = torch.randn(recipe.batch, width, generator=generator)
        return {"x": x, "t": torch.randint(100, (recipe.batch,), generator=generator)}

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = rows["x"]
        truth = 2 * x[:, :1] - 3 * x[:, 1:2] + 1
        return (network(x) - truth).square().mean(1), {"seen": x[:, 0]}

    return network, Objective(draw, loss, timesteps=100)
