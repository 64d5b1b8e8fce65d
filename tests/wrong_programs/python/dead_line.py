# A line stands behind return.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)
        score = score + 1.0

# finding: dead-statement at 14:9
# says: nothing runs after return
# hint: at the end
# fix 14:
