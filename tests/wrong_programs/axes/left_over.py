# The sub-pages of a page are never reduced.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: score-axes at 11:21
# says: float[page, part]
# hint: reduce part
# fix 8:         return dot(q, s.parts, channel).max(part).max(head)
