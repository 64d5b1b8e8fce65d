# The merged axis is named in quotes.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).merge(part, token, into="tokens").mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-expected at 5:74
# says: plain name
# hint: write a new name
# fix 5:         return dict(parts=k.split(token, part=4).merge(part, token, into=tokens).mean(tokens))
# fix 8:         return dot(q, s.parts, channel).max(head)
