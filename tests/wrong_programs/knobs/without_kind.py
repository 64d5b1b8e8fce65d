# A knob has no kind.
@program(page=16)
class Centroid:
    budget = knob(1, 512)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-kind at 4:14
# says: a knob has a kind
# hint: knob.int(1, 64, default=4)
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
