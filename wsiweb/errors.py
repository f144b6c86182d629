"""The errors that the library raises on purpose; nothing of the libraries below escapes.

::

    WsiWebError
    |- SlideNotFoundError       no whole-slide image at that place
    |- MetadataError            the dataset breaks a rule that reading needs
    |- UnsupportedError         valid DICOM that is not read
    |- RegionError(ValueError)  the caller asked for what cannot exist
    |- SearchError(ValueError)  the caller searched for what DICOM does not have
    |- DecodeError              a frame's bytes would not decode
    '- SourceError              a source failed to deliver
       |- AuthenticationError
       |- QuotaExceededError
       |- ThrottledError
       |- SourceTimeoutError(TimeoutError)
       '- ProtocolError         short, missing or unreadable answers
"""

from __future__ import annotations

from typing import Self


class WsiWebError(Exception):
    """Base of every error that the library raises on purpose."""


class MetadataWarning(UserWarning):
    """A part of the slide cannot be read; the rest can."""


class SlideNotFoundError(WsiWebError):
    """There is no whole-slide image at that place."""


class MetadataError(WsiWebError):
    """The metadata lacks or contradicts something that reading needs."""


class UnsupportedError(WsiWebError):
    """Valid DICOM, or a valid request, that this library does not read."""


class RegionError(WsiWebError, ValueError):
    """The caller asked for pixels that cannot exist; nothing was requested from the source."""


class SearchError(WsiWebError, ValueError):
    """The caller searched by what is no filter; nothing was requested from the service."""


class DecodeError(WsiWebError):
    """The bytes of a frame would not decode to the image that the metadata promise."""


class SourceError(WsiWebError):
    """A source failed to deliver.

    Parameters
    ----------
    message
        What failed, where, and what to do.
    url
        The request, without secrets; None for local files.
    status
        HTTP status, where there was an answer.
    frame_numbers
        The 1-based frames that were asked for and are missing.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str | None = None,
        status: int | None = None,
        frame_numbers: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.url = url
        self.status = status
        self.frame_numbers = frame_numbers

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...], dict[str, object]]:
        """Pickle with the keyword arguments, so that errors cross process borders whole."""
        return type(self), self.args, dict(self.__dict__)


class AuthenticationError(SourceError):
    """The service refused the credentials, or their lack."""


class QuotaExceededError(SourceError):
    """A quota is used up; asking again before it resets is useless."""


class ThrottledError(SourceError):
    """The service asked for patience more often than ``max_attempts`` allows."""


class SourceTimeoutError(SourceError, TimeoutError):
    """The source did not deliver in time."""


class ProtocolError(SourceError):
    """An answer was short, malformed or not what was asked for."""
