"""Reference values of the losses, by PyTorch in float64, written apart from the Rust code.

Run: python make_losses.py > losses.json   (needs torch; 2.15.0 made the file beside this script)
"""
import json
import torch

torch.set_default_dtype(torch.float64)
A = -4.0


def saal(form, logits, labels, counts, raw_alpha, raw_betas, raw_heads, use_weights=True, use_reverse=True,
         use_head_weights=False):
    counts = torch.tensor([float(max(n, 1)) for n in counts])
    present = (torch.tensor(present_of[tuple(counts.tolist())]) if tuple(counts.tolist()) in present_of
               else torch.ones(len(counts)))
    if form == "literal":
        alpha = torch.sigmoid(raw_alpha)
        betas = [torch.log(1 + torch.exp(b)) for b in raw_betas]
    else:
        alpha = 1 - 10 ** -(2 + 3 * torch.sigmoid(raw_alpha))
        betas = [2.0 * torch.sigmoid(b) for b in raw_betas]
    weights = (1 - alpha) / (1 - alpha**counts) * present
    if form == "stabilised":
        weights = weights / weights.sum() * present.sum()
    if not use_weights:
        weights = present
    total = torch.zeros(())
    parts = []
    heads = [2.0 * torch.sigmoid(h) if use_head_weights else torch.ones(()) for h in raw_heads]
    for beta, head, x in zip(betas, heads, logits):
        cross_entropy = torch.nn.functional.cross_entropy(x, labels, reduction="none")
        one_hot = torch.nn.functional.one_hot(labels, x.shape[1]).double()
        log_q = torch.where(one_hot > 0, torch.zeros(()), torch.full((), A))
        reverse = -(torch.softmax(x, 1) * log_q).sum(1)
        loss = cross_entropy + (beta * reverse if use_reverse else 0)
        total = total + head * (weights[labels] * loss).mean()
        parts.append([cross_entropy.mean().item(), reverse.mean().item()])
    if form == "stabilised":
        share = lambda raw: torch.sigmoid(raw)
        barrier = lambda raw: -torch.log(share(raw)) - torch.log(1 - share(raw)) - 2 * torch.log(torch.tensor(2.0))
        if use_weights:
            total = total + 1.0 * barrier(raw_alpha)
        if use_reverse:
            total = total + sum(0.5 * barrier(b) for b in raw_betas)
        if use_head_weights:
            total = total + sum(0.5 * barrier(h) for h in raw_heads)
    return total, parts, weights, alpha, betas


present_of = {(50.0, 200.0, 1.0): [1.0, 1.0, 0.0]}


def case(name, form, n, counts, seed, scale=1.0, **switches):
    torch.manual_seed(seed)
    k = len(counts)
    logits = [(torch.randn(n, k) * scale).requires_grad_() for _ in range(2)]
    labels = torch.randint(0, 2 if counts[-1] == 0 else k, (n,))
    # What initial_alpha = 0.999 and initial_beta = 0.5 mean for the free numbers, in single precision.
    if form == "literal":
        raw_alpha, raw_beta = torch.logit(torch.tensor(0.999)), torch.log(torch.expm1(torch.tensor(0.5)))
    else:
        raw_alpha, raw_beta = torch.logit(torch.tensor(1 / 3)), torch.logit(torch.tensor(0.25))
    raw_alpha = raw_alpha.float().double().requires_grad_()
    raw_betas = [raw_beta.float().double().requires_grad_() for _ in logits]
    raw_heads = [torch.zeros((), requires_grad=True) for _ in logits]
    total, parts, weights, alpha, betas = saal(
        form, logits, labels, counts, raw_alpha, raw_betas, raw_heads, **switches)
    total.backward()
    grad = lambda x: 0.0 if x.grad is None else x.grad.tolist()
    return {
        "name": name,
        "form": form,
        "use_weights": switches.get("use_weights", True),
        "use_reverse": switches.get("use_reverse", True),
        "use_head_weights": switches.get("use_head_weights", False),
        "counts": counts,
        "logits": [x.tolist() for x in logits],
        "labels": labels.tolist(),
        "total": total.item(),
        "parts": parts,
        "weights": weights.tolist(),
        "alpha": alpha.item(),
        "logit_gradients": [x.grad.tolist() for x in logits],
        "alpha_gradient": grad(raw_alpha),
        "beta_gradients": [grad(b) for b in raw_betas],
        "head_weight_gradients": [grad(h) for h in raw_heads],
    }


paper = [1256, 2674, 980]
print(json.dumps([
    case("the paper's counts", "stabilised", 6, paper, 1),
    case("the paper's counts", "literal", 6, paper, 2),
    case("confident logits", "stabilised", 5, paper, 3, scale=20.0),
    case("a class with one sample", "stabilised", 4, [300, 50, 1], 4),
    case("a class with one sample", "literal", 4, [300, 50, 1], 5),
    case("a batch of one", "stabilised", 1, paper, 6),
    case("an absent class", "stabilised", 4, [50, 200, 0], 7),
    case("without class weights", "stabilised", 4, paper, 8, use_weights=False),
    case("without reverse cross entropy", "stabilised", 4, paper, 9, use_reverse=False),
    case("learned head weights", "stabilised", 4, paper, 10, use_head_weights=True),
], indent=1))
