# A file holds two programs.
@program(page=16)
class SinkWindow:
    def select(ctx):
        return where(ctx.layer < 2, everything(), first(1) | last(16))


@program(page=16)
class Dense:
    def select():
        return everything()

# finding: two-classes at 9:1
# says: one program
# hint: file of its own
# fix 6:
# fix 7:
# fix 8:
# fix 9:
# fix 10:
# fix 11:
