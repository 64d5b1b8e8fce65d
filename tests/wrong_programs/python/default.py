# A parameter has a default.
@program(page=16)
class SinkWindow:
    def select(ctx=None):
        return where(ctx.layer < 2, everything(), first(1) | last(16))

# finding: method-shape at 4:5
# says: plain parameters
# hint: defaults
# fix 4:     def select(ctx):
