# The score is printed where it is made.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        x = print(q)
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-function at 10:13
# says: print
# hint: remove it
# fix 10:
