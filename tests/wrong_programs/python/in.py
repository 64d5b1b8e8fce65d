# Layers are listed with in.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer in (0, 1), everything(), first(1) | last(16))

# finding: not-in-language at 5:22
# says: in
# hint: a == 1 or a == 2
# fix 5:         return where(ctx.layer == 0 or ctx.layer == 1, everything(), first(1) | last(16))
