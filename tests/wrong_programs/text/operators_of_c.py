# Conditions are joined as in C.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2 && ctx.layer > 0, everything(), first(1) | last(16))

# finding: syntax at 5:37
# says: not Python syntax
# hint: and, or, not
# fix 5:         return where(ctx.layer < 2 and ctx.layer > 0, everything(), first(1) | last(16))
