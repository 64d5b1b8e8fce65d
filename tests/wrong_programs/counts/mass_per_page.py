# The mass of topp differs from page to page.
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topp(score, score)

# finding: not-scalar at 11:28
# says: p must be a scalar
# hint: .mean(page)
# fix 11:         return topp(score, score.mean(page))
