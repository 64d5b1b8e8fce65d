# Pages and parts are merged into one axis.
@program(page=16)
class SubPages:
    def summarize(k):
        return dict(parts=k.split(token, part=4).mean(token))

    def score(q, s):
        return dot(q, s.parts, channel).merge(page, part, into=page).max(head)

    def select(score):
        return topk(score, 64)

# finding: page-axis at 8:47
# says: merge does not work on page
# hint: take, shift, window
# fix 8:         return dot(q, s.parts, channel).max(part).max(head)
