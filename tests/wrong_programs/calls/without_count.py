# first is told no number.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2, everything(), first() | last(16))

# finding: argument-count at 5:51
# says: first lacks n
# hint: first(n)
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
