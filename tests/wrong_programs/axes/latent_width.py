# Keys and values of latent attention differ in width.
@program(page=16)
class Latent:
    def summarize(k, v, ctx):
        return dict(latent=(k + v).mean(token))

    def score(q, s, ctx):
        return dot(q.slice(channel, 0, ctx.latent), s.latent, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-size at 5:29
# says: channels of a key and channels of a value
# hint: x.slice(channel, 0, ctx.latent)
# fix 5:         return dict(latent=(k.slice(channel, 0, ctx.latent) + v).mean(token))
