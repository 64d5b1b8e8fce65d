# remember returns a value.
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=0.0)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return score

# finding: memory-mapping at 16:9
# says: by name
# hint: dict(mass=...)
# fix 16:         return dict(mass=score)
