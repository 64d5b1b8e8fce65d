# Sets are listed by a comprehension.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2, everything(), [first(n) for n in range(4)])

# finding: not-in-language at 5:51
# says: [first(n)
# hint: |, & and -
# fix 5:         return where(ctx.layer < 2, everything(), first(4))
