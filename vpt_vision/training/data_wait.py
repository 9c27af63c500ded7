"""How long steps wait for images, and whose fault it is."""

from __future__ import annotations

from collections.abc import Mapping

from vpt_vision.data import Batch

WORTH_A_WORD = 0.05  # share of the time
KEYS = ("data_wait", "decode_images_per_second", "model_images_per_second")


class DataWait:
    """Compares the rate at which workers read with the rate at which the model takes images.

    Args:
        batch_size: images per step.
        workers: processes that read; 0 where the training process reads.
    """

    def __init__(self, batch_size: int, workers: int) -> None:
        self.batch_size = batch_size
        self.workers = workers
        self._told = False
        self._intervals = 0
        self._images, self._seconds = 0, 0.0

    def add(self, batch: Batch) -> None:
        """Take in how long the batch of a step took to read."""
        self._images += batch.size
        self._seconds += batch.seconds

    def read(self, seconds_per_step: float, seconds_waited: float) -> dict[str, float]:
        """Return what there is to log of the steps since the last reading, and start again.

        `data_wait` is the share of their time that they waited, `decode_images_per_second` what all workers
        read when they are at work, `model_images_per_second` what steps would take without waiting.

        Args:
            seconds_per_step: mean over the steps.
            seconds_waited: of these, for images.
        """
        images, seconds = self._images, self._seconds
        self._images, self._seconds = 0, 0.0
        share = seconds_waited / seconds_per_step
        decode = max(self.workers, 1) * images / max(seconds, 1e-9)
        model = self.batch_size / max(seconds_per_step - seconds_waited, 1e-9)
        return dict(zip(KEYS, (share, decode, model), strict=True))

    def judge(self, figures: Mapping[str, float | int | None]) -> str | None:
        """Tell once of a run that its steps wait; None where they do not.

        The first interval is passed over: the workers have just begun.
        """
        self._intervals += 1
        if self._told or self._intervals == 1 or (figures["data_wait"] or 0.0) < WORTH_A_WORD:
            return None
        self._told = True
        return self.sentence(figures)

    def sentence(self, figures: Mapping[str, float | int | None]) -> str:
        """Tell how long steps wait, by the figures of `read`, and what to do about it."""
        share, decode, model = (figures[key] or 0.0 for key in KEYS)
        if self.workers == 0:
            return (
                f"the training process itself decodes {decode:,.0f} img/s, the model takes {model:,.0f}: it "
                f"waits {share:.0%} of the time; set data.workers to the number of cores"
            )
        sentence = (
            f"{self.workers} workers decode {decode:,.0f} img/s, the model takes {model:,.0f}: it waits "
            f"{share:.0%} of the time"
        )
        if decode < model:
            return f"{sentence}; raise data.workers where there are cores left, or lower data.shorter_side"
        return f"{sentence}; decoding would be fast enough, so look at what shares its cores, and the disk"
