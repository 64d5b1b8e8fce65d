# A choice is written as in C.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return ctx.layer < 2 ? everything() : last(16)

# finding: stray-character at 5:30
# says: '?'
# hint: where(condition, a, b)
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
