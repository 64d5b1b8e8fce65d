# An option of the program is misspelt.
@program(page=16, sumaries="bf16")
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-argument at 2:28
# says: no option sumaries
# hint: did you mean summaries?
# fix 2: @program(page=16, summaries="bf16")
