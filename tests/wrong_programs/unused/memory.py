# A memory is written and never read (warning).
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=0.0)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: unused-memory at 4:5
# says: the memory mass
# hint: read m.mass
# fix 9:     def score(q, s, m):
# fix 10:         return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)
