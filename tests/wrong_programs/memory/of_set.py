# A memory of numbers is given a set.
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=0.0)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(pages):
        return dict(mass=pages)

# finding: memory-type at 16:26
# says: holds float[page]
# hint: float(member(pages))
# fix 16:         return dict(mass=float(member(pages)))
