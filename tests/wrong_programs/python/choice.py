# A branch over layers is an if expression.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return everything() if ctx.layer < 2 else first(1) | last(16)

# finding: not-in-language at 5:16
# says: everything() if
# hint: where(condition, a, b)
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
