# A member of ctx is misspelt.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.leyer < 2, everything(), first(1) | last(16))

# finding: unknown-member at 5:22
# says: ctx has no leyer
# hint: did you mean layer?
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
