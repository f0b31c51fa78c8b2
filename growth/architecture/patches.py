"""Images as a transformer sees them: a sequence of square patches behind a class token."""

import dataclasses

from growth.architecture.validation import ArchitectureError, positive_int


@dataclasses.dataclass(frozen=True)
class Patches:
    """How images are cut into patches (Dosovitskiy et al., arXiv 2010.11929).

    Attributes:
      height, width: of an image, in pixels.
      channels: values of a pixel.
      size: height and width of a patch, in pixels.

    Raises:
      ArchitectureError: a field is out of range, or patches do not cover an image.

    Examples:
      >>> from growth.architecture import Patches
      >>> patches = Patches(height=8, width=8, channels=1, size=2)
      >>> patches.number, patches.dim
      (16, 4)

    References:
      Dosovitskiy et al., arXiv 2010.11929, section 3.1.
    """

    height: int
    width: int
    channels: int
    size: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            positive_int(f"patches.{field.name}", getattr(self, field.name))
        for name in ("height", "width"):
            if getattr(self, name) % self.size:
                raise ArchitectureError(
                    f"patches.size is {self.size}, but it must divide patches.{name}, "
                    f"{getattr(self, name)}"
                )

    @property
    def number(self) -> int:
        """Patches of an image."""
        return (self.height // self.size) * (self.width // self.size)

    @property
    def dim(self) -> int:
        """Values of a patch."""
        return self.size * self.size * self.channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image: height, width, channels."""
        return self.height, self.width, self.channels
