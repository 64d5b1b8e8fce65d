# A sub-page is added to a whole page.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=(k.split(token, part=4) + k).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-size at 5:28
# says: token has different lengths
# hint: reduce token
# fix 5:         return dict(parts=k.split(token, part=4).mean(token) + k.mean(token))
