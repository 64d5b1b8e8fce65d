# Pages are counted in a loop.
@program(page=16)
class SinkWindow:
    def select(ctx):
        n = 1
        while n < ctx.pages:
            n *= 2
        return where(ctx.layer < 2, everything(), first(1) | last(16))

# finding: not-in-language at 6:9
# says: while n < ctx.pages
# hint: reduce
# fix 5:
# fix 6:
# fix 7:
