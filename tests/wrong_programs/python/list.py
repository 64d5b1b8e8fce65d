# Sets stand in a list.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2, everything(), [first(1), last(16)])

# finding: not-in-language at 5:51
# says: [first(1), last(16)]
# hint: |, & and -
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
