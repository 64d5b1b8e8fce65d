# The methods stand outside of a class.
def select(ctx):
    return first(1) | last(16)

# finding: top-level at 2:1
# says: def select(ctx)
# hint: into the class
# fix 2: @program(page=16)
# fix 3: class SinkWindow:
# fix 3:     def select(ctx):
# fix 3:         return where(ctx.layer < 2, everything(), first(1) | last(16))
