# One branch is a set, the other a number.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2, everything(), 0)

# finding: set-and-number at 5:16
# says: two sets
# hint: first(n)
# fix 5:         return where(ctx.layer < 2, everything(), first(1))
