# The number is given twice.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2, everything(), first(1, n=2) | last(16))

# finding: argument-count at 5:62
# says: twice
# hint: once
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
