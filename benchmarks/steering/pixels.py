"""Judge raw pixels and the start of a candidate testbed by logistic regression, before anything is trained.

    python benchmarks/steering/pixels.py configs/testbed/scenes_colour.yaml evaluation.test.count=1000

The config has an `evaluation` part; what follows it are changes, as `vpt train` takes them.
"""

from __future__ import annotations

import argparse
import sys

import torch
from testbed import pixels_probe

from vpt_vision import load_config
from vpt_vision.errors import UserError
from vpt_vision.evaluation.probes import probe
from vpt_vision.learner import Backbone


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="run config of the candidate")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it")
    options = parser.parse_args()
    try:
        config = load_config(options.config, options.overrides)
        if config.evaluation is None:
            raise UserError(
                f"{options.config} has no 'evaluation' part: it names the images to be told apart."
            )
        torch.manual_seed(config.seed)
        start = Backbone(config.learner.backbone).eval()
        evaluation = config.evaluation.model_copy(update={"cache": None})
        (of_start,) = probe(start, evaluation, ("logistic",), renderer=config.renderer())["logistic"]
        for name, result in (("raw pixels", pixels_probe(config)), ("start", of_start)):
            accuracy, entropy = (result.interval(figure).mean for figure in ("accuracy", "cross_entropy"))
            print(f"{name}: accuracy {accuracy:.1%}, cross-entropy {entropy:.3f} nats")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
