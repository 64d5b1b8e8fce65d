# select takes a score that nothing makes.
@program(page=16)
class SinkWindow:
    def select(score, ctx):
        return where(ctx.layer < 2, everything(), first(1) | last(16))

# finding: score-missing at 4:16
# says: no score method
# hint: remove the parameter
# fix 4:     def select(ctx):
