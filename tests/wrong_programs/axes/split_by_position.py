# The number of parts has no name.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, 4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: argument-count at 5:27
# says: one named number of parts
# hint: part
# fix 5:         return dict(parts=k.split(token, part=4).mean(token))
