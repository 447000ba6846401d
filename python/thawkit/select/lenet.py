"""A small convolutional network for digits, after LeCun et al. 1998 with today's parts."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions and one hidden layer for 28×28 images; 0.2 M parameters.

    Args:
        num_classes: outputs of the head.
        width: size of the features that go into the head.
    """

    def __init__(self, num_classes: int = 10, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 20, kernel_size=5, padding=2, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.Conv2d(20, 40, kernel_size=5, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(40),
            nn.ReLU(),
        )
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(40 * 5 * 5, width), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, 3, 28, 28) to logits (N, num_classes)."""
        return self.head(self.hidden(self.body(images)))
