"""What the forms of all outputs share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TrialId = Annotated[str, Field(pattern="^t[0-9]{4,}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Knobs = dict[str, int | float | bool | str | None]
Number = int | float
Bytes = Annotated[int, Field(ge=0)]


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Estimate(Form):
    """A point estimate and its 95 % interval."""

    value: float
    low: float
    high: float
