# Query heads are split.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).split(head, half=2).max(half).max(head)

    def select(score):
        return topk(score, 64)

# finding: split-axis at 8:57
# says: head cannot be split
# hint: leave it whole
# fix 8:         return dot(q, s.parts, channel).max(part).max(head)
