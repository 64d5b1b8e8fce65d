# A choice mixes texts and numbers.
@program(page=16)
class SubPages:
    how = knob.choice("max", 2, default="max")

    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).reduce(how, head)

    def select(score):
        return topk(score, 64)

# finding: knob-values at 4:11
# says: different texts or numbers
# hint: do not mix
# fix 4:     how = knob.choice("max", "mean", default="max")
