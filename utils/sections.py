"""What the sections of a configuration are made of: their common base, and kinds of numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(gt=0, le=2**31)]  # what a tensor can have of anything
Size = Annotated[int, Field(gt=0, le=8192)]  # a wider network would fit nowhere; one of a checkpoint may be a trap


class Section(BaseModel):
    """A part of the configuration: unknown keys and other types than the declared ones are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
