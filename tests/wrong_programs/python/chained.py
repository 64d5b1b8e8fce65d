# Two comparisons are chained.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(0 < ctx.layer < 3, everything(), first(1) | last(16))

# finding: chained-comparison at 5:22
# says: do not chain
# hint: a < b and b < c
# fix 5:         return where(0 < ctx.layer and ctx.layer < 3, everything(), first(1) | last(16))
