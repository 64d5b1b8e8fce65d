# first is told two numbers.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2, everything(), first(1, 2) | last(16))

# finding: argument-count at 5:60
# says: too many
# hint: leave it out
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
