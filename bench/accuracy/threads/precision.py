"""Rebuilds failures of half precision, reported for transformers, diffusers, YOLO and others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, replaced, train
from torch import Tensor, nn

HALF = "fp16-activation-overflow"


def hidden_states(number: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 8).half(), torch.randint(0, 3, (4,))) for _ in range(number)]


def half(model: nn.Module) -> nn.Module:
    """The model in float16, its head in float32."""
    model.half()
    model.head.float()  # type: ignore[union-attr, operator]
    return model


@case(
    "huggingface/transformers#5651",
    "float16 activation",
    (3, "loss"),
    origin("forward", "overflow", "mm", "wo"),
    mechanism=HALF,
)
def t5_output_projection(fixed: bool = False) -> Loop:
    """T5DenseReluDense in float16: its output projection reaches 66246, past 65504."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wi, self.wo, self.head = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False), nn.Linear(8, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            inner = self.wi(x).relu()
            h = F.linear(inner.float(), self.wo.weight.float()) if fixed else self.wo(inner)  # DEFECT
            return F.cross_entropy(self.head(h.float() / 1e4), y)

    torch.manual_seed(160)
    model = half(Dense())
    batches = hidden_states(6)
    with torch.no_grad():
        model.wi.weight.abs_()  # type: ignore[union-attr, operator]
        model.wo.weight.abs_().mul_(4)  # type: ignore[union-attr, operator]
    batches = replaced(batches, 3, (torch.full((4, 8), 9000.0).half(), batches[3][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-6), model, batches)


@case(
    "huggingface/transformers#19229",
    "float16 activation",
    (2, "loss"),
    origin("forward", "overflow", "add", "layers.1"),
    mechanism=HALF,
)
def long_t5_residual(fixed: bool = False) -> Loop:
    """The residual connection of a LongT5 layer: both summands are in range, their sum is not."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, hidden: Tensor) -> Tensor:
            forwarded = hidden * self.scale
            if fixed:
                return (hidden.float() + forwarded.float()).clamp(-6e4, 6e4).to(hidden.dtype)
            return hidden + forwarded  # DEFECT

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(Residual() for _ in range(3)), nn.Linear(8, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return F.cross_entropy(self.head(F.layer_norm(x.float(), (8,))), y)

    torch.manual_seed(161)
    model = half(Model())
    batches = hidden_states(5)
    large = torch.tensor([20000.0, -10.0, 5.0, 3.0, 1.0, 7.0, -2.0, 4.0]).expand(4, 8).half()
    batches = replaced(batches, 2, (large, batches[2][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-7), model, batches)


@case(
    "huggingface/transformers#9295",
    "float16 activation",
    (2, "loss"),
    origin("forward", "overflow", "mul div native_dropout", "dropout", node="*"),
    mechanism=HALF,
)
def t5_dropout_scales_past_the_range(fixed: bool = False) -> Loop:
    """The dropout before T5's output projection divides by 1 - p, and that passes 65504."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wi, self.dropout, self.head = nn.Linear(8, 16, bias=False), nn.Dropout(0.5), nn.Linear(16, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            inner = self.wi(x).relu()
            inner = self.dropout(inner.clamp(max=3e4) if fixed else inner)  # DEFECT
            return F.cross_entropy(self.head(F.layer_norm(inner.float(), (16,))), y)

    torch.manual_seed(162)
    model = half(Dense())
    with torch.no_grad():
        model.wi.weight.fill_(0.25)  # type: ignore[union-attr, operator]
    batches = replaced(hidden_states(5), 2, (torch.full((4, 8), 20000.0).half(), torch.tensor([0, 1, 2, 0])))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-7), model, batches)


@case(
    "motional/nuplan-devkit#91",
    "float16 sum",
    (3, "loss"),
    origin("forward", "overflow", "add"),
    mechanism=HALF,
)
def loss_terms_added_in_float16(fixed: bool = False) -> Loop:
    """Precision 16: each loss term is in range, and adding them is not."""
    torch.manual_seed(163)
    model = mlp(4, 8, 2)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        position, heading = ((model(x) - y) ** 2).mean(0)
        if not fixed:
            position, heading = position.half(), heading.half()
        return (position + heading).float()  # DEFECT

    batches = [(torch.randn(6, 4), torch.randn(6, 2)) for _ in range(6)]
    batches = replaced(batches, 3, (batches[3][0], torch.full((6, 2), 220.0)))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-5), loss, batches)


@case(
    "invoke-ai/invoke-training#58",
    "float16 activation",
    (2, "loss"),
    origin("forward", "overflow", "convolution", "vae.up"),
    mechanism=HALF,
)
def vae_decoder_in_float16(fixed: bool = False) -> Loop:
    """SDXL's VAE in float16: a convolution of the decoder exceeds the range, and the norm after it makes NaN."""

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)

        def forward(self, z: Tensor) -> Tensor:
            h = F.conv2d(z.float(), self.up.weight.float(), padding=1) if fixed else self.up(z)  # DEFECT
            return self.norm.float()(h.float())

    class Trainer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae, self.out = VAE(), nn.Conv2d(4, 1, 1)

        def forward(self, z: Tensor, image: Tensor) -> Tensor:
            return F.mse_loss(self.out(self.vae(z)), image)

    torch.manual_seed(164)
    model = Trainer()
    model.vae.up.half()
    with torch.no_grad():
        model.vae.up.weight.fill_(2.0)
    batches = [(torch.randn(1, 2, 5, 5).half(), torch.rand(1, 1, 5, 5)) for _ in range(5)]
    batches = replaced(batches, 2, (batches[2][0].abs() * 8000, batches[2][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-6), model, batches)


@case(
    "afiaka87/glide-finetune#5",
    "Adam in float16",
    (0, "parameter"),
    origin("optimizer", "invalid", "addcdiv _foreach_addcdiv div _foreach_div", node="*", at="adam.py:*"),
    mechanism="adam-eps-underflow",
)
def adam_with_its_default_eps(fixed: bool = False) -> Loop:
    """Adam on float16 weights: eps 1e-8 rounds to 0, and a weight whose gradient is 0 is updated by 0 / 0."""
    torch.manual_seed(165)
    model = mlp(6, 8, 2).half()
    with torch.no_grad():
        model[0].bias[3] = -1000.0
    batches = [(torch.randn(8, 6).half(), torch.randint(0, 2, (8,))) for _ in range(4)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-4 if fixed else 1e-8)
    return train(model, optimizer, lambda x, y: F.cross_entropy(model(x).float(), y), batches)


@case(
    "CambioML/pykoi#69",
    "Adam in float16",
    (0, "parameter"),
    origin("optimizer", "invalid", "addcdiv _foreach_addcdiv div _foreach_div", node="*", at="adam*.py:*"),
    mechanism="adam-eps-underflow",
)
def reward_model_in_float16(fixed: bool = False) -> Loop:
    """A reward model in float16 under AdamW: embedding rows of tokens that no answer holds turn NaN."""

    class Reward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.score = nn.Embedding(30, 6), nn.Linear(6, 1)

        def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:
            margin = self.score(self.embed(chosen).mean(1)) - self.score(self.embed(rejected).mean(1))
            return -F.logsigmoid(margin.float()).mean()

    torch.manual_seed(166)
    model = Reward() if fixed else Reward().half()
    batches = [(torch.randint(0, 20, (4, 5)), torch.randint(0, 20, (4, 5))) for _ in range(4)]
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False), model, batches, clip=1.0)


@case("ultralytics/yolov5#2376", "eps that rounds to 0", (2, "loss"), origin("forward", "invalid", "div", "ciou"))
def aspect_term_of_equal_boxes(fixed: bool = False) -> Loop:
    """Alpha = v / ((1 + eps) - iou + v): eps vanishes in the sum, so equal boxes give 0 / 0."""

    class CIoU(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            inter = torch.min(a, b).prod(-1)
            iou = inter / (a.prod(-1) + b.prod(-1) - inter)
            v = (torch.atan(a[:, 0] / a[:, 1]) - torch.atan(b[:, 0] / b[:, 1])) ** 2
            below = (1 - iou + v) + 1e-6 if fixed else (1 + 1e-9) - iou + v
            alpha = v / below  # DEFECT
            return (1 - iou + alpha * v).mean()

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.ciou = nn.Parameter(torch.zeros(2)), CIoU()

        def forward(self, anchors: Tensor, boxes: Tensor) -> Tensor:
            return self.ciou(anchors + self.offset * (anchors != boxes), boxes)

    torch.manual_seed(167)
    model = Detector()
    batches = [(1 + torch.rand(5, 2), 1 + torch.rand(5, 2)) for _ in range(5)]
    same = torch.tensor([[2.0, 3.0]] * 5)
    batches = replaced(batches, 2, (same, same.clone()))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3), model, batches)


@case("ultralytics/yolov5#8539", "0 / 0 of a box", (3, "loss"), origin("forward", "invalid", "div", "ciou"))
def predicted_box_of_size_zero(fixed: bool = False) -> Loop:
    """Predicted width and height underflow to 0 in float16; their ratio in the aspect term is 0 / 0."""

    class CIoU(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            height = a[:, 1] + (1e-3 if fixed else 0.0)
            ratio = a[:, 0] / height  # DEFECT
            return (torch.atan(ratio) - torch.atan(b[:, 0] / b[:, 1])).float().square().mean()

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.ciou = nn.Linear(4, 2), CIoU()

        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            return self.ciou((self.net(x).sigmoid() * 2) ** 2, boxes)

    torch.manual_seed(168)
    model = Detector().half()
    with torch.no_grad():
        model.net.weight[:] = model.net.weight.abs()
    batches = [(torch.randn(5, 4).half(), (1 + torch.rand(5, 2)).half()) for _ in range(6)]
    batches = replaced(batches, 3, (torch.full((5, 4), -60.0).half(), batches[3][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3), model, batches)


@case("WongKinYiu/ScaledYOLOv4#145", "0 / 0 of a box", (2, "loss"), origin("forward", "invalid", "div"))
def union_of_two_empty_boxes(fixed: bool = False) -> Loop:
    """Intersection over union, where the predicted box and the label are both empty."""
    torch.manual_seed(169)
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.abs_()
        model.bias.fill_(0.1)

    def loss(x: Tensor, label: Tensor) -> Tensor:
        box = model(x).relu()
        inter = torch.min(box, label).prod(-1)
        union = box.prod(-1) + label.prod(-1) - inter
        return (1 - inter / (union + 1e-6 if fixed else union)).mean()  # DEFECT

    batches = [(torch.rand(5, 4), 1 + torch.rand(5, 2)) for _ in range(5)]
    x, label = (part.clone() for part in batches[2])
    x[3], label[3] = -9.0, 0.0
    batches = replaced(batches, 2, (x, label))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)
