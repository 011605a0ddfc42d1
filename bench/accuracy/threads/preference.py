"""Rebuilds failures of preference and supervised losses, reported for TRL, axolotl, unsloth and others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import TinyLM, logps, replaced, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")
IGNORED = origin("forward", "invalid", "nll_loss_forward", node="NllLossBackward*")


def answers(number: int, length: int = 5) -> list[tuple[Tensor, ...]]:
    """Chosen and rejected answers, one row each."""
    return [(torch.randint(0, 20, (3, length)), torch.randint(0, 20, (3, length))) for _ in range(number)]


def make_certain(model: TinyLM, token: int, logit: float = 300.0) -> None:
    """Let the model give probability 1 to a token after itself."""
    with torch.no_grad():
        model.embed.weight[token] = 50.0 * model.body.weight.sign().sum(0)
        hidden = torch.tanh(model.body(model.embed.weight[token]))
        model.head.weight[token] = logit * hidden


@case(
    "huggingface/trl#1473",
    "ORPO log-odds",
    (3, "gradient"),
    origin("backward", "invalid", "div", "odds", node="Log1PBackward*"),
    origin("forward", "divide_by_zero", "log1p", "odds"),
    mechanism="log-of-zero",
)
def orpo_certain_answer(fixed: bool = False) -> Loop:
    """The model is certain of an answer: its log-probability is 0, exp of that is 1, and log1p(-1) is -inf.

    The loss is 0, because logsigmoid(inf) is 0; the gradient of log1p is 0 / 0.
    """

    class Odds(nn.Module):
        def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:
            if fixed:
                chosen, rejected = chosen.clamp(max=-1e-5), rejected.clamp(max=-1e-5)
            odds = torch.log1p(-torch.exp(torch.stack([chosen, rejected])))  # DEFECT
            return -F.logsigmoid((chosen - rejected) - (odds[0] - odds[1])).mean()

    class Trainer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm, self.odds = TinyLM(), Odds()

        def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:
            a, b = (logps(self.lm(ids[:, :-1]), ids[:, 1:]).mean(1) for ids in (chosen, rejected))
            return self.odds(a, b)

    torch.manual_seed(100)
    model = Trainer()
    make_certain(model.lm, 23)
    certain = torch.full((3, 5), 23)
    batches = replaced(answers(6), 3, (certain, answers(1)[0][1]))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-4), model, batches)


@case(
    "hpcaitech/ColossalAI#6407",
    "ORPO log-odds",
    (2, "loss"),
    origin("forward", "invalid", "log"),
    mechanism="log-of-zero",
)
def orpo_log_of_a_negative_number(fixed: bool = False) -> Loop:
    """log(1.0001 - exp(logp)): a log-probability above 0, as low precision rounds it, makes the argument negative."""
    torch.manual_seed(101)
    model = nn.Linear(6, 2)

    def loss(x: Tensor, rounding: Tensor) -> Tensor:
        logp = model(x).log_softmax(-1)[:, 0] + rounding
        if fixed:
            logp = logp.clamp(max=-1e-6)
            return -(logp - torch.log1p(-torch.exp(logp))).mean()
        return -(logp - torch.log(-torch.exp(logp) + 1.0001)).mean()  # DEFECT

    batches = [(torch.randn(4, 6), torch.zeros(4)) for _ in range(5)]
    sure = 30.0 * (model.weight[0] - model.weight[1]).detach().expand(4, 6)
    batches = replaced(batches, 2, (sure.clone(), torch.full((4,), 0.0039)))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3), loss, batches)


@case("huggingface/trl#2274", "ORPO log-odds", (4, "loss"), LOG0, mechanism="log-of-zero")
def orpo_log_of_sigmoid(fixed: bool = False) -> Loop:
    """log(sigmoid(log_odds)) of a pair that the model ranks the wrong way round by far: sigmoid is 0."""
    torch.manual_seed(102)
    model = nn.Linear(8, 1)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        log_odds = model(chosen) - model(rejected)
        if fixed:
            return -F.logsigmoid(log_odds).mean()
        return -torch.log(torch.sigmoid(log_odds)).mean()  # DEFECT

    batches = [(torch.randn(5, 8), torch.randn(5, 8)) for _ in range(6)]
    far = 200.0 * model.weight.detach().sign().expand(5, 8)
    batches = replaced(batches, 4, (-far, far))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), loss, batches)


@case(
    "axolotl-ai-cloud/axolotl#3910",
    "ORPO log-odds",
    (2, "gradient"),
    origin("backward", "invalid", "div", "orpo", node="LogBackward*"),
    origin("forward", "divide_by_zero", "log", "orpo"),
    mechanism="log-of-zero",
)
def orpo_in_bfloat16(fixed: bool = False) -> Loop:
    """log(1 - exp(logp)) in bfloat16: probabilities above 0.998 round to 1. The gradient is 0 / 0."""

    class Orpo(nn.Module):
        def forward(self, logp: Tensor) -> Tensor:
            if fixed:
                logp = logp.float().clamp(max=-1e-4)
            against = torch.log(1 - torch.exp(logp))  # DEFECT
            return -F.logsigmoid(logp - against).mean()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.orpo = nn.Linear(6, 3), Orpo()

        def forward(self, x: Tensor) -> Tensor:
            return self.orpo(self.score(x).log_softmax(-1)[:, 0])

    torch.manual_seed(103)
    model = Model().bfloat16()
    batches = [(torch.randn(4, 6).bfloat16(),) for _ in range(5)]
    with torch.no_grad():
        sure = 60.0 * (2 * model.score.weight[0] - model.score.weight[1] - model.score.weight[2])
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3), model, replaced(batches, 2, (sure.expand(4, 6),)))


@case("unslothai/unsloth-zoo#830", "ORPO log-odds", (3, "loss"), LOG0, mechanism="log-of-zero")
def orpo_guard_that_rounds_to_zero(fixed: bool = False) -> Loop:
    """log(max(-expm1(logp), 1e-12)) in float16: the guard itself is 0."""
    torch.manual_seed(104)
    model = nn.Linear(6, 2).half()
    dtype = torch.float32 if fixed else torch.float16

    def loss(x: Tensor) -> Tensor:
        logp = model(x).to(dtype).log_softmax(-1)[:, 0]
        value = torch.maximum(-torch.expm1(logp), torch.tensor(1e-12, dtype=dtype))
        return (torch.log(value) - logp).float().mean()  # DEFECT

    batches = [(torch.randn(4, 6).half(),) for _ in range(6)]
    sure = (40.0 * (model.weight[0] - model.weight[1]).detach().sign()).expand(4, 6).clone()
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-4), loss, replaced(batches, 3, (sure,)))


@case(
    "huggingface/trl#5339",
    "mean over a mask",
    (3, "loss"),
    origin("forward", "invalid", "div"),
    mechanism="mean-over-nothing",
)
def answer_of_padding(fixed: bool = False) -> Loop:
    """Mean log-probability of an answer over its own tokens; one row is padding only: 0 / 0 for that row."""
    torch.manual_seed(105)
    model = TinyLM()

    def loss(ids: Tensor, mask: Tensor) -> Tensor:
        per_token = logps(model(ids), ids)
        count = mask.sum(-1).clamp(min=1) if fixed else mask.sum(-1)
        return -((per_token * mask).sum(-1) / count).mean()  # DEFECT

    batches = [(torch.randint(0, 24, (4, 6)), (torch.arange(6) < 4).float().expand(4, 6)) for _ in range(6)]
    mask = batches[0][1].clone()
    mask[2] = 0
    batches = replaced(batches, 3, (batches[3][0], mask))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)


@case("huggingface/trl#5826", "no labels", (2, "loss"), IGNORED, mechanism="empty-labels")
def completions_fully_truncated(fixed: bool = False) -> Loop:
    """max_length is shorter than the prompts: the selected completion tokens are an empty tensor."""
    torch.manual_seed(106)
    model = TinyLM()

    def loss(ids: Tensor, completion: Tensor) -> Tensor:
        logits, labels = model(ids)[completion], ids[completion]
        if fixed and not len(labels):
            return logits.sum()
        return F.cross_entropy(logits, labels)  # DEFECT

    batches = [(torch.randint(0, 24, (3, 6)), (torch.arange(6) > 3).expand(3, 6)) for _ in range(5)]
    batches = replaced(batches, 2, (batches[2][0], torch.zeros(3, 6, dtype=torch.bool)))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)


@case("huggingface/trl#6668", "no labels", (4, "loss"), IGNORED, mechanism="empty-labels")
def every_label_is_masked(fixed: bool = False) -> Loop:
    """Truncation leaves prompts only: every label of the batch is -100 and the mean is over nothing."""
    torch.manual_seed(107)
    model = TinyLM()

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        logits = model(ids)[:, :-1].flatten(0, 1)
        if fixed:
            summed = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
            return summed / (labels[:, 1:] != -100).sum().clamp(min=1)
        return F.cross_entropy(logits, labels[:, 1:].flatten())  # DEFECT

    batches = [(ids, ids.clone()) for ids in torch.randint(0, 24, (7, 2, 8))]
    batches = replaced(batches, 4, (batches[4][0], torch.full((2, 8), -100)))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)


@case(
    "pytorch/pytorch#116349",
    "no labels",
    (2, "loss"),
    origin("forward", "invalid", "nll_loss2d_forward", "CrossEntropyLoss", node="NllLoss2DBackward*"),
    mechanism="empty-labels",
)
def tagger_with_ignored_tags(fixed: bool = False) -> Loop:
    """Two micro-batches per step; all tags of the last one of step 2 are ignore_index."""
    torch.manual_seed(108)
    model = TinyLM()
    criterion = nn.CrossEntropyLoss(ignore_index=-100, reduction="sum" if fixed else "mean")

    def closure(call: int) -> object:
        def run(batch: tuple[Tensor, Tensor]) -> Tensor:
            ids, tags = batch
            loss = criterion(model(ids).transpose(1, 2), tags)  # DEFECT
            (loss / 2).backward()
            return loss

        return run

    batches = [(torch.randint(0, 24, (2, 5)), torch.randint(0, 24, (2, 5))) for _ in range(10)]
    batches = replaced(batches, 5, (batches[5][0], torch.full((2, 5), -100)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    return Loop(model, optimizer, closure, batches=batches, accumulate=2)  # type: ignore[arg-type]


@case(
    "nvidia-cosmos/cosmos-rl#155",
    "no labels",
    (3, "loss"),
    origin("forward", "invalid", "div"),
    mechanism="empty-labels mean-over-nothing",
)
def mean_by_hand_over_no_labels(fixed: bool = False) -> Loop:
    """The sum of losses over the count of labels, in a batch whose labels are all masked: 0 / 0.

    What is counted are labels, so empty-labels is the closer name; a mean over nothing it is as well.
    """
    torch.manual_seed(109)
    model = TinyLM()

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
        count = (labels != -100).sum()
        return each.sum() / (count.clamp(min=1) if fixed else count)  # DEFECT

    batches = [(ids, ids.clone()) for ids in torch.randint(0, 24, (6, 2, 6))]
    batches = replaced(batches, 3, (batches[3][0], torch.full((2, 6), -100)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    return train(model, optimizer, loss, batches, clip=1.0)


@case(
    "harvardnlp/annotated-transformer#109",
    "label smoothing",
    (1, "loss"),
    LOG0,
    mechanism="log-of-zero",
)
def label_smoothing_of_log_probabilities(fixed: bool = False) -> Loop:
    """KLDivLoss takes log(p) of a generator's probabilities; one is 0 and its smoothed target is not."""
    torch.manual_seed(110)
    model = nn.Linear(6, 5)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        smoothed = torch.full((len(x), 5), 0.1 / 4).scatter_(1, target.unsqueeze(1), 0.9)
        p = model(x).softmax(-1)
        log_p = model(x).log_softmax(-1) if fixed else p.log()  # DEFECT
        return F.kl_div(log_p, smoothed, reduction="sum")

    batches = [(torch.randn(4, 6), torch.randint(0, 5, (4,))) for _ in range(4)]
    batches = replaced(batches, 1, (batches[1][0] * 400, batches[1][1]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)


@case("google-deepmind/optax#896", "0 * -inf", (2, "loss"), origin("forward", "invalid", "mul", first_nan=True))
def banned_class_in_a_dense_cross_entropy(fixed: bool = False) -> Loop:
    """Cross entropy with dense labels; a banned class has logit -inf, log-probability -inf and label 0: 0 * -inf."""
    torch.manual_seed(111)
    model = nn.Linear(6, 5)

    def loss(x: Tensor, labels: Tensor, banned: Tensor) -> Tensor:
        log_p = model(x).masked_fill(banned, float("-inf")).log_softmax(-1)
        if fixed:
            log_p = torch.where(labels == 0, 0.0, log_p)
        return -(labels * log_p).sum(-1).mean()  # DEFECT

    labels = F.one_hot(torch.randint(0, 3, (5, 4)), 5).float()
    batches = [(torch.randn(4, 6), y, torch.zeros(4, 5, dtype=torch.bool)) for y in labels]
    banned = torch.zeros(4, 5, dtype=torch.bool)
    banned[1, 4] = True
    batches = replaced(batches, 2, (*batches[2][:2], banned))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), loss, batches)
