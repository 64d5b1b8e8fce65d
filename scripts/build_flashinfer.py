"""Compiles FlashInfer modules in the order of their worth; build_flashinfer.sh sets the environment."""

from __future__ import annotations

import sys
import time

import torch
from flashinfer.jit import gen_batch_mla_module, gen_batch_prefill_module
from flashinfer.jit.attention import gen_batch_decode_module
from flashinfer.jit.topk import gen_topk_module

BF16, INT = torch.bfloat16, torch.int32
WIDTHS = (128, 128)  # channels of keys and of values
PLAIN = (0, False, False)  # positions encoded outside, no sliding window, no soft cap of logits
MLA = (BF16, BF16, BF16, INT, 512, 64, False)

MODULES = {
    "decode on CUDA cores": lambda: gen_batch_decode_module(BF16, BF16, BF16, INT, *WIDTHS, *PLAIN),
    "decode on tensor cores, prefill (fa2)": lambda: gen_batch_prefill_module(
        "fa2", BF16, BF16, BF16, INT, *WIDTHS, *PLAIN, False
    ),
    "top-k": gen_topk_module,
    "MLA decode (fa2)": lambda: gen_batch_mla_module("fa2", *MLA),
    "MLA decode (fa3)": lambda: gen_batch_mla_module("fa3", *MLA),
    "prefill (fa3)": lambda: gen_batch_prefill_module("fa3", BF16, BF16, BF16, INT, *WIDTHS, *PLAIN, False),
}


def main() -> int:
    failed = 0
    for name, make in MODULES.items():
        began = time.monotonic()
        try:
            spec = make()
            if not spec.jit_library_path.exists():
                spec.build(verbose=False)
            print(f"{name}: {spec.name}, {time.monotonic() - began:.0f} s", flush=True)
        except Exception as error:  # one peer fewer; the rest are still worth having
            failed += 1
            print(f"{name}: {type(error).__name__}: {str(error)[-2000:]}", flush=True)
    return 1 if failed == len(MODULES) else 0


if __name__ == "__main__":
    sys.exit(main())
