# A method yields.
@program(page=16)
class SinkWindow:
    def select(ctx):
        yield where(ctx.layer < 2, everything(), first(1) | last(16))

# finding: not-in-language at 5:9
# says: yield
# hint: write return
# finding: no-return at 4:5
# fix 5:         return where(ctx.layer < 2, everything(), first(1) | last(16))
