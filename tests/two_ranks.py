"""The second process of test_collectives.py: `two_ranks.py RANK FOLDER`.

Each rank takes its half of one fixed batch and saves what it finds; without a process group the same
function takes the whole batch.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vpt_vision import collectives
from vpt_vision.learner import BackboneConfig, HeadConfig, Learner, LearnerConfig
from vpt_vision.task import Masks, RenderedViews


def compute() -> dict[str, torch.Tensor]:
    """Losses, gradients and centres, each averaged over the ranks as data-parallel training does."""
    ranks, rank = collectives.world_size(), collectives.rank()
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(3, 6, 3, 16, 16, generator=generator, dtype=torch.float64)
    hidden = torch.rand(2, 6, 4, generator=generator) < 0.5
    hidden[:, :3, 0] = True  # the ranks hide different numbers of tokens
    share = slice(rank * 6 // ranks, (rank + 1) * 6 // ranks)
    views = RenderedViews(images[:2, share], images[2:, share])
    masks = Masks.of(hidden[:, share], int(hidden[:, share].sum()))
    found = {"rows": collectives.all_gather_rows(images[:, share].transpose(0, 1))}
    for centring in ("sinkhorn", "ema"):
        torch.manual_seed(0)
        config = LearnerConfig(
            backbone=BackboneConfig(
                name="vit_tiny_patch16_224",
                options={"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 16},
            ),
            head=HeadConfig(prototypes=12, hidden=16, bottleneck=8),
            koleo_weight=0.5,
            gram_weight=1.0,
            centring=centring,
        )
        learner = Learner(config).double()
        with torch.no_grad():
            for parameter in learner.student.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        losses = learner(views, masks, 0.1)
        losses.total.backward()
        for term, value in losses.terms.items():
            found[f"{centring}.{term}"] = collectives.all_reduce_mean(value)
        for name, parameter in learner.student.named_parameters():
            found[f"{centring}.gradient.{name}"] = collectives.all_reduce_mean(parameter.grad)
        for name, buffer in learner.named_buffers():
            found[f"{centring}.{name}"] = buffer
    return found


def compute_as_rank(rank: int, folder: Path) -> None:
    """Take part as one of two ranks and save what was found in `folder`."""
    store, patience = f"file://{folder}/store", timedelta(seconds=180)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    try:
        torch.save(compute(), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    compute_as_rank(int(sys.argv[1]), Path(sys.argv[2]))
