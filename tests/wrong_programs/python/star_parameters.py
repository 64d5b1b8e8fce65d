# A method takes whatever it is given.
@program(page=16)
class SinkWindow:
    def select(ctx, **kwargs):
        return where(ctx.layer < 2, everything(), first(1) | last(16))

# finding: method-shape at 4:5
# says: plain parameters
# hint: stars
# fix 4:     def select(ctx):
