# A constant stands outside the class.
BUDGET = 64

@program(page=16)
class Centroid:
    budget = 64

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: top-level at 2:1
# says: BUDGET = 64
# hint: into the class
# fix 2:
# fix 3:
