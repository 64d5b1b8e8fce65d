# select reads ctx and does not take it.
@program(page=16)
class SinkWindow:
    def select():
        return where(ctx.layer < 2, everything(), first(1) | last(16))

# finding: unknown-name at 5:22
# says: ctx
# hint: add it to the parameters
# fix 4:     def select(ctx):
