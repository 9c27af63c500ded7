"""What a run logged, without what depends on the clock."""

import json

from vpt_vision.training.step_timer import PHASES

TIMINGS = {"images_per_second", "seconds_left", "training_seconds", "peak_host_memory_mb"}
TIMINGS |= {"host_memory_mb", "data_wait", "decode_images_per_second", "model_images_per_second"}
TIMINGS |= {f"seconds/{phase}" for phase in PHASES}


def lines(output):
    """Return the records of the run in folder `output` that two runs of one config share."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMINGS} for record in records]
