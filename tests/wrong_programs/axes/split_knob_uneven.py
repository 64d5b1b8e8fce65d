# One setting of the knobs cuts a page unevenly (warning).
@program(page=16)
class SubPages:
    parts = knob.choice(2, 3, 4, default=4)

    def summarize(k):
        return dict(parts=k.split(token, part=parts).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: split-size at 7:47
# says: 16 into 3
# hint: powers of two
# fix 4:     parts = knob.choice(2, 4, 8, default=4)
