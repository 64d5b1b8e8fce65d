# A page is cut into a hundred parts.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=100).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: split-size at 5:47
# says: out of range
# hint: a few parts
# fix 5:         return dict(parts=k.split(token, part=4).mean(token))
