from vortexlab.dsl import *


@program(page=64, block=64)
class NSA:
    """Native sparse attention: compressed blocks, selected blocks and a window, each with its gate.

    compressed entry i = weighted sum of keys (values) 16i..16i+31; p(i) = softmax over i(scale * q . entry i);
    score(page) = sum over heads of p(i) times the 16-token parts of the page that i covers;
    output = sum over branches of sigmoid(q . gate) * attention of the branch
    Source: NSA (Yuan et al., Native Sparse Attention, arXiv 2502.11089): blocks of 32 with stride 16, 16 pages of 64,
    1 initial and 2 local ones forced, window of 512.
    Parameters: early, late [layer, 16] weights of a token in the first and second half of a compressed block;
    compress_gate, select_gate, window_gate [layer, KV head, head, channel].
    Deviations: compression is a learned weighted sum instead of an MLP; gates look at the query instead of the layer's
    input; one set of keys and values serves all branches; in prefill 64 queries share one selection, by their mean.
    """

    budget = knob.int(4, 512, log=True, default=13)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    local = knob.int(1, 64, log=True, default=8)  # pages
    early = param(token16=16)
    late = param(token16=16)
    compress_gate = param(head, channel, per_kv_head=True)
    select_gate = param(head, channel, per_kv_head=True)
    window_gate = param(head, channel, per_kv_head=True)

    def summarize(k, v):
        keys = k.split(token, part=4).rename(token, token16)
        values = v.split(token, part=4).rename(token, token16)
        return dict(
            early_keys=dot(keys, early, token16), late_keys=dot(keys, late, token16),
            early_values=dot(values, early, token16), late_values=dot(values, late, token16),
        )

    def pool(q): return q.mean(query)

    def score(q, s, ctx):
        begun = dot(q, s.early_keys, channel)
        ended = dot(q, s.late_keys, channel)
        over = ended.slice(part, 0, 1).shift(page, -1, fill=-1e30)
        logits = ctx.scale * (begun + concat(ended.slice(part, 1), over, part))
        weight = exp(logits - logits.max(part).max(page))
        mass = (weight / weight.sum(part).sum(page)).sum(head)
        before = mass.slice(part, -1).max(part).shift(page, 1, fill=0.0)
        return 2.0 * mass.sum(part) - mass.slice(part, -1).max(part) + before

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)

    def attend(q, s, pages, ctx):
        next_keys = s.late_keys.slice(part, 0, 1).shift(page, -1, fill=0.0)
        next_values = s.late_values.slice(part, 0, 1).shift(page, -1, fill=0.0)
        keys = s.early_keys + concat(s.late_keys.slice(part, 1), next_keys, part)
        values = s.early_values + concat(s.late_values.slice(part, 1), next_values, part)
        whole = keys.index(part) < 3 or keys.index(page) < ctx.pages - 2
        compressed = attention(keys=keys, values=values, log_weight=where(whole, 0.0, -1e30))
        selected = attention(pages)
        near = attention(last(local))
        gated = sigmoid(dot(q, compress_gate, channel)) * compressed + sigmoid(dot(q, select_gate, channel)) * selected
        return gated + sigmoid(dot(q, window_gate, channel)) * near
