"""The Triton executor: kernels generated from the typed form of a program, and paged attention over page lists.

The way of a program: `graph` lowers it and schedules it into kernels, `codegen` writes their source (with names of
our own), `modules` stores and imports that source, `executor` launches it. Attention
over page lists is `attention` in a decode step and `prefill` over prompts. `report` compiles it ahead of time for
architectures that need not be present.
"""
