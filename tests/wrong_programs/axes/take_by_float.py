# take reads at float positions.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return q.take(channel, s.centre.max(channel)).max(head)

    def select(score):
        return topk(score, budget)

# finding: index-not-int at 10:16
# says: int positions
# hint: argmax
# fix 10:         return q.take(channel, s.centre.argmax(channel)).max(head)
