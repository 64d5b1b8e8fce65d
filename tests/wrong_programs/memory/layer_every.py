# A memory of layers is rewritten every few steps.
@program(page=16)
class RunningMass:
    mass = memory.layer(page, every=4)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: unknown-argument at 4:37
# says: no option every
# hint: init
# fix 4:     mass = memory.step(page, every=4)
