def test_a(make_step, images, keys):
    import torch
    for lr in (.02,.05,.1):
        settings = {"surfaces": ["masks"], "kl_weight": 0.0, "learning_rate": lr}
        step = make_step(designer=settings, normalise="none")
        print(lr,[round(step(images, keys, .07)["value"].item(),3) for _ in range(14)])
    for lr,p in ((.05,4),(.05,2),(.1,2)):
        settings = {"surfaces": ["crops"], "kl_weight": 0.0, "learning_rate": lr}
        def area(setting, task, u):
            return {"dino": (task.global_views.boxes[..., 2:].prod(-1)).mean() / 1600}
        step = make_step(designer=settings, normalise="none", pairs=p); step._values=area
        still = make_step(designer={**settings, "learning_rate": 0.0}, normalise="none", pairs=p); still._values=area
        f=lambda st:torch.stack([st(images, keys._replace(step=n), .07)["value"] for n in range(10)])
        print(lr,p,f(step)-f(still))
