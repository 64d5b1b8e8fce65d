# A layer's number is taken for a truth value.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer, first(1) | last(16), everything())

# finding: not-a-truth-value at 5:16
# says: truth value first
# hint: compare first
# fix 5:         return where(ctx.layer > 0, first(1) | last(16), everything())
