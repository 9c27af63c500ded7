"""A task set, rendered and refined by a designer that asks nothing of the learner."""

from vpt_vision.task import Renderer


def posed(designer, images, keys):
    """Return the task as drawn, its views, and what the designer made of both."""
    task = designer(images, keys)
    views = Renderer()(images, task)
    return task, views, designer.refine(task, views, keys, None, 0.04)
