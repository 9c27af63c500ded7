"""One sentence for an argument of the wrong dtype, shape, device or range."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATS = (torch.float32, torch.float64)
LOGITS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int64,)
BOOLEAN = (torch.bool,)


def expect(
    function: str,
    name: str,
    tensor: Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | str, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    """Refuse `tensor` unless it has one of `dtypes` and, where given, the `shape` and `device`.

    A number in `shape` must be met, a name stands for any size.

    Raises:
        TypeError: not a tensor, or one of another dtype.
        ValueError: another shape or device.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, not {type(tensor).__name__}.")
    sizes_agree = shape is None or (
        tensor.dim() == len(shape)
        and all(
            isinstance(size, str) or size == found for size, found in zip(shape, tensor.shape, strict=True)
        )
    )
    if tensor.dtype in dtypes and sizes_agree and device in (None, tensor.device):
        return
    wanted = f"{' or '.join(map(_name, dtypes))} [{', '.join(map(str, shape or ('*',)))}]"
    found = f"{_name(tensor.dtype)} [{', '.join(map(str, tensor.shape))}]"
    if device not in (None, tensor.device):
        wanted, found = f"{wanted} on {device}", f"{found} on {tensor.device}"
    error = ValueError if tensor.dtype in dtypes else TypeError
    raise error(f"{function}: {name} must be {wanted}, got {found}.")


def host_or(tensor: Tensor, device: torch.device) -> torch.device:
    """Return where a `tensor` that may lie on the host or on `device` ought to be."""
    return tensor.device if isinstance(tensor, Tensor) and tensor.device.type == "cpu" else device


def expect_counts(function: str, counts: Tensor, patches: int) -> None:
    """Refuse `counts` unless int64 [N] and, where looking does not wait for a device, within 0..`patches`."""
    expect(function, "counts", counts, INTEGER, ("N",))
    found = counts.tolist() if _shows(counts) else []
    if found and (min(found) < 0 or max(found) > patches):
        raise ValueError(
            f"{function}: counts must lie in 0..{patches}, the number of patches, "
            f"got {min(found)}..{max(found)}."
        )


def expect_rows(function: str, rows: Tensor | None, tokens: int, teachers: int, device: torch.device) -> None:
    """Refuse `rows` unless int64 [tokens, P] and, where looking does not wait, in -1..teachers-1.

    None stands for the row of the same number, so there must be as many teachers as tokens.
    """
    if rows is None:
        if tokens != teachers:
            raise ValueError(
                f"{function}: without rows student and teacher must have equally many rows, "
                f"got {tokens} and {teachers}."
            )
        return
    expect(function, "rows", rows, INTEGER, (tokens, "P"), device)
    if _shows(rows) and ((rows < -1) | (rows >= teachers)).any():
        raise ValueError(
            f"{function}: rows must lie in -1..{teachers - 1}, the teacher's rows or -1 for none, "
            f"got {int(rows.min())}..{int(rows.max())}."
        )


def _shows(tensor: Tensor) -> bool:
    """Whether `tensor` has values that can be looked at without waiting: not on a device, traced or fake."""
    on_host = tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)
    return on_host and not torch.compiler.is_compiling()


def expect_temperatures(
    function: str, name: str, temperature: float | Tensor, rows: int, like: Tensor
) -> Tensor:
    """Give a temperature to each of `rows` rows: [rows] in fp32 (fp64 for a `like` of fp64), on its device.

    Refuse what is neither a positive number nor a float tensor of one element or of one for each row. A
    tensor's values are not looked at: that would wait for the device.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"{function}: {name} must be above 0, got {temperature}.")
        return torch.full((), temperature, dtype=wide, device=like.device).expand(rows)
    if temperature.numel() == 1:
        temperature = temperature.reshape(())
    elif temperature.shape != (rows,):
        raise ValueError(
            f"{function}: {name} must have one element or one for each of {rows} rows, "
            f"got {list(temperature.shape)}."
        )
    expect(function, name, temperature, LOGITS, tuple(temperature.shape), like.device)
    return temperature.to(wide).expand(rows)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
