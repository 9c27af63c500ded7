"""Parts of one's own, named in a config as package.module:callable."""

from __future__ import annotations

import pkgutil
from typing import Annotated, Any

from pydantic import Field

from vpt_vision.errors import UserError

Factory = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]


def import_factory(factory: str) -> Any:
    """Import what `factory` names; raises `UserError` where it cannot be imported."""
    try:
        return pkgutil.resolve_name(factory)
    except (ImportError, AttributeError) as error:
        raise UserError(f"factory {factory} cannot be imported: {error}") from error
