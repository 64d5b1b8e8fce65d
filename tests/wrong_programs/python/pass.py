# A method does nothing.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        pass

# finding: not-in-language at 13:9
# says: pass
# hint: remove it
# finding: no-return at 12:5
# fix 13:         return topk(score, budget)
