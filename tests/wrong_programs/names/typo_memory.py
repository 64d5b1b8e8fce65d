# A memory is misspelt where it is read.
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=0.0)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mas + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: unknown-member at 10:22
# says: m has no mas
# hint: did you mean mass?
# fix 10:         return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)
