# One axis is merged with itself.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).merge(part, part, into=part).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-taken at 5:62
# says: two
# hint: part, token
# fix 5:         return dict(parts=k.split(token, part=4).mean(token))
