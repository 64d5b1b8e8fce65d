# The number of parts is computed.
@program(page=16)
class SubPages:
    def summarize(k, ctx):
        return dict(parts=k.split(token, part=ctx.page // 4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: split-size at 5:47
# says: whole number or an int knob
# hint: write a number
# fix 4:     def summarize(k):
# fix 5:         return dict(parts=k.split(token, part=4).mean(token))
