# A kind of knob is misspelt.
@program(page=16)
class Centroid:
    budget = knob.integer(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-kind at 4:14
# says: unknown kind of knob integer
# hint: did you mean int?
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
