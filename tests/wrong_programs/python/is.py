# A comparison is written with is.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer is 0, everything(), first(1) | last(16))

# finding: not-in-language at 5:22
# says: is
# hint: ==
# fix 5:         return where(ctx.layer == 0, everything(), first(1) | last(16))
