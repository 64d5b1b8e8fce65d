# A text is run.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return __import__('os').system('id')

    def select(score):
        return topk(score, budget)

# finding: unknown-function at 10:16
# says: __import__
# hint: known here
# fix 10:         return dot(q, s.centre, channel).max(head)
