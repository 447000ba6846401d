"""Images as PNG text that goes into the page itself."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor


def to_pil(image: Tensor) -> Image.Image:
    """Return a uint8 tensor (3, H, W) as a picture."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def data_uri(image: Tensor) -> str:
    """Return a uint8 tensor (3, H, W) as a ``data:`` address of a PNG; grey is stored as grey."""
    picture = to_pil(image)
    if (image[0] == image[1]).all() and (image[0] == image[2]).all():
        picture = picture.convert("L")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
