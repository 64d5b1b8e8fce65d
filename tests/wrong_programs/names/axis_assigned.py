# A variable has the name of an axis.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        part = 4
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: name-taken at 8:9
# says: part names an axis
# hint: another name
# fix 8:
