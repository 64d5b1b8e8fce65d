# A memory is misspelt where it is written.
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
        return dict(mas=score)

# finding: unknown-memory at 16:25
# says: no memory mas
# hint: did you mean mass?
# finding: memory-not-written at 16:9
# fix 16:         return dict(mass=score)
