# The order of sort is written as in torch.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token).sort(part, "descending"))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: unknown-reduction at 5:73
# says: no reduction or order
# hint: down
# fix 5:         return dict(parts=k.split(token, part=4).mean(token).sort(part, "down"))
