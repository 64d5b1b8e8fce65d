# attend returns the set.
@program(page=16)
class Gated:
    def summarize(k, v):
        return dict(keys=k.mean(token), values=v.mean(token))

    def score(q, s):
        return dot(q, s.keys, channel).max(head)

    def select(score):
        return topk(score, 32)

    def attend(q, s, pages):
        return pages

# finding: attend-shape at 14:9
# says: output of every query head
# hint: attention(pages)
# fix 4:     def summarize(k):
# fix 5:         return dict(keys=k.mean(token))
# fix 13:     def attend(pages):
# fix 14:         return attention(pages)
