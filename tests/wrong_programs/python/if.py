# A branch over layers is an if statement.
@program(page=16)
class SinkWindow:
    def select(ctx):
        if ctx.layer < 2:
            return everything()
        return first(1) | last(16)

# finding: not-in-language at 5:9
# says: if ctx.layer < 2
# hint: where(condition, a, b)
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
# fix 6:
# fix 7:
