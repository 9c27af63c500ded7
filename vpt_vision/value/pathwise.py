"""Which parts of a task a derivative of its value may follow back to the designer."""

from __future__ import annotations

from dataclasses import replace

from vpt_vision.designers import Surface
from vpt_vision.task import Task, Views


def opened(task: Task, surfaces: frozenset[Surface]) -> Task:
    """Return `task` with the designer's graph in the parts that `surfaces` make, and in no other."""

    def views(of: Views) -> Views:
        held = of.detach()
        return replace(
            held,
            boxes=of.boxes if "crops" in surfaces else held.boxes,
            photometrics=of.photometrics if "photometrics" in surfaces else held.photometrics,
        )

    masks = task.masks if "masks" in surfaces else task.masks.detach()
    targets = task.targets if "targets" in surfaces else task.targets.detach()
    return Task(views(task.global_views), views(task.local_views), masks, targets)
