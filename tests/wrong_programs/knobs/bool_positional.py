# A truth value has no name.
@program(page=16)
class SinkWindow:
    dense = knob.bool(True)

    def select(ctx):
        return where(dense and ctx.layer < 2, everything(), first(1) | last(16))

# finding: knob-values at 4:13
# says: a default alone
# hint: default=True
# fix 4:     dense = knob.bool(default=True)
