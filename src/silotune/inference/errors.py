"""Refusals in OpenAI's own form, which its clients turn into their exceptions."""

from dataclasses import dataclass


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is not answered."""

    status: int
    """HTTP status: 400 cannot be meant, 401 key, 403 host, 404 not there, 413 too large, 500 a defect, 503 busy."""
    message: str
    param: str | None = None
    """The field that is at fault."""
    code: str | None = None

    @property
    def body(self) -> dict[str, object]:
        """What the client is sent."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
