# A method gives a knob another value.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        budget = 32
        return topk(score, budget)

# finding: name-taken at 13:9
# says: declared in the class
# hint: another name
# fix 13:
