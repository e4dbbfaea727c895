"""Small convolutional networks: the cheapest points of the published memory-accuracy curves.

Zhou et al., A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning, ICLR 2023, Tables 2-12. The
paper gives parameter counts; kernel and channel sizes here are the ones that reproduce them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv_block(channels_in: int, channels: int, kernel: int) -> nn.Sequential:
    """Convolution with bias, batch normalisation, ReLU and 2x2 max-pooling (rounded up, for tiny images)."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, ceil_mode=True),
    )


class ConvNet(nn.Module):
    """A stack of convolution blocks and average pooling.

    Args:
        channels: output channels of each block; the last is D.
        kernels: kernel size of each block.
        in_channels: channels of the images.
    """

    def __init__(self, channels: Sequence[int], kernels: Sequence[int], in_channels: int = 3) -> None:
        super().__init__()
        inputs = [in_channels, *channels[:-1]]
        self.blocks = nn.Sequential(
            *(conv_block(*sizes) for sizes in zip(inputs, channels, kernels, strict=True))  # (B, D, h, w)
        )
        self.num_features = channels[-1]

    @property
    def deep(self) -> nn.Module:
        """The last block."""
        return self.blocks[-1]

    def shallow(self, x: Tensor) -> Tensor:
        """The blocks before the last, (B, C, H, W) -> (B, C', h, w)."""
        return self.blocks[:-1](x)

    def pool(self, x: Tensor) -> Tensor:
        """Mean over the places, (B, D, h, w) -> (B, D)."""
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        return self.pool(self.deep(self.shallow(x)))


def convnet2(in_channels: int = 3) -> ConvNet:
    """Two blocks of 64 channels: 38,976 parameters for colour images, 1,920 of them in the first block."""
    return ConvNet((64, 64), (3, 3), in_channels)


def convnet4(in_channels: int = 3) -> ConvNet:
    """Blocks of 128, 128, 128 and 512 channels: 906,240 parameters, 591,360 of them in the last block."""
    return ConvNet((128, 128, 128, 512), (7, 3, 3, 3), in_channels)
