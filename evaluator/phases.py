"""What of a request runs sparsely, and is timed."""

DECODE, PREFILL = "decode", "prefill"
