# Five parts do not divide a page of sixteen.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=5).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: split-size at 5:47
# says: 16 into 5
# hint: powers of two
# fix 5:         return dict(parts=k.split(token, part=4).mean(token))
