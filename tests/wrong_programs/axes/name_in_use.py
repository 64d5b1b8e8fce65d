# The new axis of a split has the name of another axis.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, channel=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-taken at 5:35
# says: channel is taken
# hint: another name
# fix 5:         return dict(parts=k.split(token, part=4).mean(token))
