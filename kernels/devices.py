"""Devices that the cost model knows: a few rates each, and where every one of them comes from.

`measured` entries were fitted to measurements of the kind named in `source`. `datasheet` entries are leads: peak
figures of the vendor, with the overheads of the measured GPU, never confirmed on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vortexlab.dsl.errors import VortexError


@dataclass(frozen=True)
class Device:
    """Rates in units per second: bytes, floating-point operations, elements.

    `ceiling`: bytes of the fastest reads there are, which no rate passes: what ideal times divide by. `read`: bytes of
    streamed reads. `gather`: bytes of K and V read page by page. `dense`: bytes of K and V read by the
    best dense attention. `ramp`: seconds lost on the way up to such a rate, half of them by a transfer of `ramp_bytes`.
    `matrix`: FLOPs of matrix products by cache dtype; `vector`: elementwise results. `choose`: scores ordered by exact
    selection. `launch`: seconds that every kernel costs beside its work; `attend_latency` and `choose_latency`: seconds
    more that attention and exact selection take at least. `units`: processors that a launch should fill, 1 where work
    is not split. `least_bytes`: bytes that an element of K or V counts for at least. `memory`: bytes of the device's
    memory by its datasheet, 0 where that depends on the machine.
    """

    name: str
    kind: str
    evidence: str
    source: str
    ceiling: float
    read: float
    gather: float
    dense: float
    matrix: dict[str, float] = field(hash=False)
    vector: float
    choose: float
    launch: float
    attend_latency: float
    choose_latency: float
    units: int
    ramp: float = 0.0
    ramp_bytes: float = 1.0
    least_bytes: int = 1
    memory: float = 0.0

    def transfer(self, size: float, rate: float) -> float:
        """Seconds of moving `size` bytes at `rate`; small amounts do not fill the device and move at a lower one."""
        return size / rate + self.ramp * size / (size + self.ramp_bytes)

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


_H200 = Device(
    name="h200",
    kind="cuda",
    evidence="measured",
    source=(
        "One H200 SXM, torch 2.11, CUDA 13, CUDA graphs: rates and latencies are fitted to dense and sparse decode "
        "steps (benchmarks/results/h200-calibration.json); bf16 matmul of 8192 cubed runs at 701 TFLOP/s. fp32 "
        "products (half the bf16 rate) and elementwise results (half the datasheet's 67 TFLOP/s): unmeasured"
    ),
    ceiling=4.6e12,
    read=4.8e+12,
    gather=4.8e+12,
    dense=4.67e+12,
    matrix={"fp32": 3.5e14, "bf16": 7.01e14, "fp16": 7.01e14},
    vector=3.3e13,
    choose=3.62e+10,
    launch=2e-07,
    attend_latency=1.49e-06,
    choose_latency=7.32e-06,
    units=132,
    ramp=5.02e-06,
    ramp_bytes=3.6e+06,
    memory=1.41e11,
)
#: The vendor's figures for the same GPU: bytes and bf16 products a second.
_H200_DATASHEET = (4.8e12, 9.89e14)


def _datasheet(
    name: str, read: float, bf16: float, fp32: float, vector: float, units: int, memory: float, source: str
) -> Device:
    bytes_share, products = read / _H200_DATASHEET[0], _H200.matrix["bf16"] / _H200_DATASHEET[1]
    return replace(
        _H200,
        name=name,
        evidence="datasheet",
        source=f"{source}; reached as far as on the H200 and with its overheads, unconfirmed",
        ceiling=_H200.ceiling * bytes_share,
        read=_H200.read * bytes_share,
        gather=_H200.gather * bytes_share,
        dense=_H200.dense * bytes_share,
        matrix={name: rate * products for name, rate in (("fp32", fp32), ("bf16", bf16), ("fp16", bf16))},
        vector=vector,
        choose=_H200.choose * bytes_share,
        units=units,
        ramp_bytes=_H200.ramp_bytes * bytes_share,
        memory=memory,
    )


_TABLE = [
    _H200,
    _datasheet(
        "h100", 3.35e12, 9.89e14, 4.95e14, 3.3e13, 132, 8.0e10,
        "NVIDIA H100 SXM 80 GB datasheet: 3.35 TB/s, 989 TFLOP/s dense bf16, 67 TFLOP/s fp32",
    ),
    _datasheet(
        "a100", 2.039e12, 3.12e14, 1.56e14, 9.7e12, 108, 8.0e10,
        "NVIDIA A100 SXM 80 GB datasheet: 2,039 GB/s, 312 TFLOP/s dense bf16, 19.5 TFLOP/s fp32",
    ),
    _datasheet(
        "mi300x", 5.3e12, 1.307e15, 6.537e14, 8.1e13, 304, 1.92e11,
        "AMD Instinct MI300X datasheet: 5.3 TB/s, 1,307 TFLOP/s dense bf16, 163.4 TFLOP/s fp32",
    ),
    Device(
        name="cpu",
        kind="cpu",
        evidence="measured",
        source=(
            "Two cores of an AMD EPYC (Zen 5, 1 MiB of second-level cache each), torch 2.13, fp32, two threads: "
            "products stream summaries at 38 GB/s; gathering and multiplying pages of 16 x 128 runs at 15 GB/s; the "
            "best dense path (16k tokens, 8 x 128, batch 4) at 24 GB/s, in bf16 no faster than in fp32; elementwise "
            "ops in cache make 8e9 results a second; a torch call costs about 4 us"
        ),
        ceiling=3.8e10,
        read=3.8e10,
        gather=1.5e10,
        dense=2.4e10,
        matrix={"fp32": 1.0e11, "bf16": 1.0e11, "fp16": 1.0e11},
        vector=8e9,
        choose=5e8,
        launch=4e-6,
        attend_latency=1.5e-4,
        choose_latency=1e-4,
        units=1,
        least_bytes=4,
    ),
]  # fmt: skip

DEVICES: dict[str, Device] = {device.name: device for device in _TABLE}


def get_device(name: str) -> Device:
    """Raises `VortexError` for a name that is not in `DEVICES`."""
    if name not in DEVICES:
        raise VortexError(f"unknown device {name!r}; the cost model knows {', '.join(DEVICES)}")
    return DEVICES[name]


def nearest_device() -> str:
    """The entry for the machine this runs on: by the GPU's name where there is one, else the CPU's.

    A GPU that the table does not know counts as the H200; say so where the figure is shown.
    """
    import torch  # here: most of what knows devices by name needs none

    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower()
    return next((known for known in DEVICES if known in name), "h200")
