# A summary reads what a request remembers.
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=0.0)

    def summarize(k):
        return dict(centre=k.mean(token) * m.mass)

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: memory-in-summary at 7:44
# says: may not read
# hint: score, select
# fix 7:         return dict(centre=k.mean(token))
