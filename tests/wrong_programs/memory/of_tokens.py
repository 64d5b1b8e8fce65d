# A memory keeps numbers of tokens.
@program(page=16)
class RunningMass:
    mass = memory.step(page, token, init=0.0)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: memory-axes at 4:30
# says: no axis of the model
# hint: page, head, channel
# fix 4:     mass = memory.step(page, init=0.0)
