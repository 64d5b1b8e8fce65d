# The choices stand in a list.
@program(page=16)
class SubPages:
    how = knob.choice(["max", "mean"], default="max")

    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).reduce(how, head)

    def select(score):
        return topk(score, 64)

# finding: literal at 4:23
# says: written out
# hint: without the list
# fix 4:     how = knob.choice("max", "mean", default="max")
