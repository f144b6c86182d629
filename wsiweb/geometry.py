"""Integer rectangles: the only place where (x, y, w, h) and (rows, columns) meet. No I/O, no DICOM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A half-open rectangle of pixels, origin at the top left, x to the right and y down."""

    x: int
    """Left edge, inclusive."""
    y: int
    """Top edge, inclusive."""
    w: int
    """Width in pixels."""
    h: int
    """Height in pixels."""

    @property
    def right(self) -> int:
        """Right edge, exclusive."""
        return self.x + self.w

    @property
    def bottom(self) -> int:
        """Bottom edge, exclusive."""
        return self.y + self.h

    @property
    def empty(self) -> bool:
        """Whether no pixel lies inside."""
        return self.w <= 0 or self.h <= 0

    def intersection(self, other: Rectangle) -> Rectangle:
        """Return the part that both share; empty where they do not touch."""
        if not self.empty and other.contains(self):
            return self
        x, y = max(self.x, other.x), max(self.y, other.y)
        w, h = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Rectangle(x, y, max(w, 0), max(h, 0))

    def contains(self, other: Rectangle) -> bool:
        """Whether ``other`` lies wholly inside."""
        within_x = self.x <= other.x and other.right <= self.right
        return within_x and self.y <= other.y and other.bottom <= self.bottom

    def shifted(self, dx: int, dy: int) -> Rectangle:
        """Return the rectangle moved by ``(dx, dy)``."""
        return Rectangle(self.x + dx, self.y + dy, self.w, self.h)

    def __str__(self) -> str:
        return f"({self.x}, {self.y}, {self.w}, {self.h})"
