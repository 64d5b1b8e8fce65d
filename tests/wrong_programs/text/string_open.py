# A text is not closed.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).reduce("max, head)

    def select(score):
        return topk(score, 64)

# finding: open-string at 8:58
# says: not closed
# hint: close it
# fix 8:         return dot(q, s.parts, channel).max(part).reduce("max", head)
