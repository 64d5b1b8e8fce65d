# The name of a reduction is an f-string.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).max(part).reduce(f"{how}", head)

    def select(score):
        return topk(score, 64)

# finding: string-prefix at 8:58
# says: no prefix
# hint: plain quotes
# fix 8:         return dot(q, s.parts, channel).max(part).reduce("max", head)
