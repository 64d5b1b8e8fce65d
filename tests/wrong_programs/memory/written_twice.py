# A memory is written twice.
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
        return dict(mass=score, mass=0.5 * score)

# finding: memory-written-twice at 16:38
# says: writes mass twice
# hint: keep one
# fix 16:         return dict(mass=score)
