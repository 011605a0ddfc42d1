"""Rebuilds failures of audio losses, reported for icefall, deepspeech.pytorch, pytorch_stoi and others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, replaced, train
from torch import Tensor, nn


@case(
    "mpariente/pytorch_stoi#7",
    "root at 0",
    (3, "gradient"),
    origin("backward", "invalid divide_by_zero", "div", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def silent_band_of_an_intelligibility_loss(fixed: bool = False) -> Loop:
    """Octave bands are roots of sums of squares; a band of silence is 0."""
    torch.manual_seed(186)
    model = nn.Linear(16, 16, bias=False)

    def loss(noisy: Tensor, clean: Tensor) -> Tensor:
        power = model(noisy).square().view(len(noisy), 4, 4).sum(-1)
        bands = torch.sqrt(power + 1e-9 if fixed else power)  # DEFECT
        return F.mse_loss(bands, clean.square().view(len(clean), 4, 4).sum(-1))

    batches = [(torch.randn(3, 16), torch.randn(3, 16)) for _ in range(6)]
    noisy = batches[3][0].clone()
    noisy[1] = 0
    batches = replaced(batches, 3, (noisy, batches[3][1]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)


@case(
    "k2-fsa/icefall#135",
    "no alignment",
    (3, "loss"),
    origin("forward", "divide_by_zero overflow", "_ctc_loss", "ctc", node="CtcLoss*"),
    mechanism="ctc-target-too-long",
)
def audio_shorter_than_its_transcript(fixed: bool = False) -> Loop:
    """CTC has no alignment of two frames to four labels: the loss is -log(0), an exact infinity."""

    class CTC(nn.Module):
        def forward(self, log_p: Tensor, targets: Tensor, frames: Tensor) -> Tensor:
            lengths = torch.full((len(targets),), targets.shape[1])
            return F.ctc_loss(log_p, targets, frames, lengths, zero_infinity=fixed)  # DEFECT

    class Recogniser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.ctc = nn.Linear(5, 8), CTC()

        def forward(self, audio: Tensor, targets: Tensor, frames: Tensor) -> Tensor:
            return self.ctc(self.out(audio).log_softmax(-1), targets, frames)

    torch.manual_seed(190)
    model = Recogniser()
    batches = [(torch.randn(9, 2, 5), torch.randint(1, 8, (2, 4)), torch.tensor([9, 9])) for _ in range(6)]
    batches = replaced(batches, 3, (*batches[3][:2], torch.tensor([9, 2])))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "SeanNaren/deepspeech.pytorch#272",
    "division by a deviation",
    (2, "loss"),
    origin("forward", "invalid", "div"),
    mechanism="zero-scale",
)
def silent_recording(fixed: bool = False) -> Loop:
    """A spectrogram is standardised by its own deviation; that of a recording of zeros is 0."""
    torch.manual_seed(191)
    model = mlp(12, 8, 4)

    def loss(audio: Tensor, y: Tensor) -> Tensor:
        centred = audio - audio.mean(1, keepdim=True)
        deviation = audio.std(1, keepdim=True) + (1e-8 if fixed else 0.0)
        return F.cross_entropy(model(centred / deviation), y)  # DEFECT

    batches = [(torch.randn(5, 12), torch.randint(0, 4, (5,))) for _ in range(5)]
    audio = batches[2][0].clone()
    audio[4] = 0
    batches = replaced(batches, 2, (audio, batches[2][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), loss, batches)


@case(
    "yxlu-0102/MP-SENet#33",
    "silence",
    (4, "loss"),
    origin("forward", "divide_by_zero", "reciprocal", "scale"),
    mechanism="zero-scale",
)
def silence_scaled_to_unit_energy(fixed: bool = False) -> Loop:
    """norm_factor = sqrt(length / sum of squares) of a silent clip is inf, and silence times inf is NaN."""

    class Scale(nn.Module):
        def forward(self, audio: Tensor) -> Tensor:
            energy = audio.square().sum(1, keepdim=True) + (1e-8 if fixed else 0.0)
            return audio * torch.sqrt(audio.shape[1] / energy)  # DEFECT

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.net = Scale(), mlp(12, 8, 12)

        def forward(self, noisy: Tensor, clean: Tensor) -> Tensor:
            return F.mse_loss(self.net(self.scale(noisy)), clean)

    torch.manual_seed(192)
    model = Denoiser()
    batches = [(torch.randn(3, 12), torch.randn(3, 12)) for _ in range(7)]
    noisy = batches[4][0].clone()
    noisy[1] = 0
    batches = replaced(batches, 4, (noisy, batches[4][1]))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), model, batches)


@case("Plachtaa/seed-vc#108", "corrupt data", (3, "loss"), origin("forward", "overflow", "pow"))
def corrupt_audio_sample(fixed: bool = False) -> Loop:
    """A trimmed file holds a sample above 1e29: its square exceeds float32."""
    torch.manual_seed(193)
    model = nn.Linear(12, 12)

    def loss(audio: Tensor) -> Tensor:
        if fixed:
            audio = audio.clamp(-1, 1)
        return ((model(audio) - audio) ** 2).mean()  # DEFECT

    batches = [(torch.randn(3, 12).clamp(-1, 1),) for _ in range(6)]
    audio = batches[3][0].clone()
    audio[2, 7] = 3e29
    batches = replaced(batches, 3, (audio,))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), loss, batches)
