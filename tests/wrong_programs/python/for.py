# Parts are walked through in a loop.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        total = 0.0
        for i in range(4):
            total += dot(q, s.parts, channel)
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: not-in-language at 9:9
# says: for i in range(4)
# hint: reduce
# fix 8:
# fix 9:
# fix 10:
