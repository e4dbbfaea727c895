"""Residual networks without a classifier.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016. ``cifar`` is section 4.2 (three stages of 16, 32 and
64 channels, by default with shortcuts without parameters); ``imagenet`` is section 4.1, taken from torchvision.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CifarBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Where the size changes, it subsamples and pads channels with zeros (option A), or is a 1x1 convolution with batch
    normalisation (option B).
    """

    def __init__(self, channels_in: int, channels: int, stride: int, zeros: str = "after", shortcut: str = "A") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.pad = stride, channels - channels_in
        self.before = self.pad // 2 if zeros == "around" else 0  # of the channels of zeros
        self.projection: nn.Module | None = None
        if shortcut == "B" and (self.pad or stride != 1):
            convolution = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.projection = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)"""
        # In place, since no gradient needs what batch normalisation gave.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.projection is not None:
            return F.relu(out.add_(self.projection(x)), inplace=True)
        short = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        if self.pad:
            short = F.pad(short, (0, 0, 0, 0, self.before, self.pad - self.before))
        return F.relu(out.add_(short), inplace=True)


class CifarResNet(nn.Module):
    """The CIFAR ResNet of depth 6n + 2: a stem, three stages of n blocks, average pooling; D = 64.

    Args:
        depth: 14, 20, 26, 32, 44 or any 6n + 2. Depth 32 has 463,504 parameters.
        in_channels: channels of the images.
        zeros: whether a shortcut pads channels with zeros ``after`` the old ones or, half before and half after,
            ``around`` them. Published weights are of one kind or the other, and their tensors do not tell.
        shortcut: ``A``, those without parameters, or ``B``, 1x1 convolutions with batch normalisation where the size
            changes, as in programs for few-shot sessions; He et al.'s names.

    Raises:
        ValueError: the depth is not 6n + 2, or zeros or shortcut are neither.
    """

    num_features = 64

    def __init__(self, depth: int = 32, in_channels: int = 3, zeros: str = "after", shortcut: str = "A") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has depth 6n + 2 (14, 20, 26, 32, 44, ...), not {depth}")
        if zeros not in ("after", "around"):
            raise ValueError(f"zeros are 'after' or 'around', not '{zeros}'")
        if shortcut not in ("A", "B"):
            raise ValueError(f"a shortcut is 'A' or 'B', not '{shortcut}'")
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, n, 1, zeros, shortcut)
        self.stage2 = self._stage(16, 32, n, 2, zeros, shortcut)
        self.stage3 = self._stage(32, 64, n, 2, zeros, shortcut)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(channels_in: int, channels: int, n: int, stride: int, zeros: str, shortcut: str) -> nn.Sequential:
        first = CifarBlock(channels_in, channels, stride, zeros, shortcut)
        return nn.Sequential(first, *(CifarBlock(channels, channels, 1) for _ in range(n - 1)))

    @property
    def deep(self) -> nn.Module:
        """The last stage, (B, 32, H / 2, W / 2) -> (B, 64, H / 4, W / 4)."""
        return self.stage3

    def shallow(self, x: Tensor) -> Tensor:
        """Everything before it, (B, C, H, W) -> (B, 32, H / 2, W / 2)."""
        return self.stage2(self.stage1(F.relu(self.bn1(self.conv1(x)), inplace=True)))

    def pool(self, x: Tensor) -> Tensor:
        """Mean over the places, (B, D, h, w) -> (B, D)."""
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64)"""
        return self.pool(self.deep(self.shallow(x)))


def cifar(depth: int = 32, in_channels: int = 3, zeros: str = "after", shortcut: str = "A") -> CifarResNet:
    """A CIFAR ResNet without classifier; see :class:`CifarResNet`."""
    return CifarResNet(depth, in_channels, zeros, shortcut)


LAYERS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def imagenet(depth: int = 18, in_channels: int = 3, stem: str = "7x7") -> nn.Module:
    """An ImageNet ResNet without classifier: torchvision's, with the number of features in ``num_features``.

    Args:
        depth: 10, 18, 34 (basic blocks), 26 or 50 (bottlenecks). Depth 18 has 11,176,512 parameters.
        in_channels: channels of the images.
        stem: ``7x7`` (stride 2 and max-pooling, for large images) or ``3x3`` (neither, for 32 to 64 pixels).

    Raises:
        ValueError: unknown depth or stem.
    """
    from torchvision.models import resnet as tv  # here, because runs on small networks need not pay for the import

    if depth not in LAYERS:
        raise ValueError(f"an ImageNet ResNet has depth {', '.join(map(str, LAYERS))}, not {depth}")
    if stem not in ("7x7", "3x3"):
        raise ValueError(f"a stem is '7x7' or '3x3', not '{stem}'")

    class ImageNetResNet(tv.ResNet):
        """torchvision's network, which also tells its last stage from the rest."""

        @property
        def deep(self) -> nn.Module:
            return self.layer4

        def shallow(self, x: Tensor) -> Tensor:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            return self.layer3(self.layer2(self.layer1(x)))

        def pool(self, x: Tensor) -> Tensor:
            return self.avgpool(x).flatten(1)

    net = ImageNetResNet(tv.Bottleneck if depth in (26, 50) else tv.BasicBlock, list(LAYERS[depth]))
    net.num_features = net.fc.in_features
    net.fc = nn.Identity()
    if stem == "3x3":
        net.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    elif in_channels != 3:
        net.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net
