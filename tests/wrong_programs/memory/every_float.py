# The period of a memory is a float.
@program(page=16)
class RunningMass:
    mass = memory.step(page, every=0.5)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: whole-number at 4:36
# says: whole number
# hint: without a point
# fix 4:     mass = memory.step(page, every=2)
