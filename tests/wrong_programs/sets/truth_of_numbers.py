# Numbers are joined with and.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer and ctx.pages > 64, everything(), first(1) | last(16))

# finding: not-a-truth-value at 5:22
# says: `and` takes truth values
# hint: x > 0
# fix 5:         return where(ctx.layer > 0 and ctx.pages > 64, everything(), first(1) | last(16))
