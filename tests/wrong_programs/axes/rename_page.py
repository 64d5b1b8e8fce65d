# The page axis is renamed.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head).rename(page, other)

    def select(score):
        return topk(score, budget)

# finding: rename-page at 10:59
# says: page cannot be renamed
# hint: keep their page axis
# fix 10:         return dot(q, s.centre, channel).max(head)
