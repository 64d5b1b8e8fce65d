# A new axis has the name of a variable.
@program(page=16)
class SubPages:
    def summarize(k):
        part = k * k
        return dict(parts=part.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-taken at 6:50
# says: part is the name of a value
# hint: another name
# fix 5:         squares = k * k
# fix 6:         return dict(parts=squares.split(token, part=4).mean(token))
