# A memory of one set is given one per query head.
@program(page=16)
class Kept:
    kept = memory.step(pages)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel)

    def select(score, m):
        return m.kept | topk(score, 16)

    def remember(score):
        return dict(kept=topk(score, 8))

# finding: memory-type at 16:26
# says: holds set
# hint: memory.step(pages, head)
# fix 4:     kept = memory.step(pages, head)
