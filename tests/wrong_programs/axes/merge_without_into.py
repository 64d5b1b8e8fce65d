# Merging does not name the new axis.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).merge(part, token).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: argument-count at 5:27
# says: merge lacks into
# hint: into=tokens
# fix 5:         return dict(parts=k.split(token, part=4).merge(part, token, into=tokens).mean(tokens))
# fix 8:         return dot(q, s.parts, channel).max(head)
