# The length of a made axis is not known from its name.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token) * float(index(part)))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: index-axis at 5:76
# says: no length here
# hint: x.index(part)
# fix 5:         return dict(parts=(k.split(token, part=4) * float(k.split(token, part=4).index(part))).mean(token))
