"""Whether the model hub answers, found out at once: its client retries for half a minute."""

from __future__ import annotations

import threading

SECONDS = 3.0


def reachable() -> bool:
    """Whether the hub gave any answer in `SECONDS`; False where its client is set to be offline."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            response = get_session().head(constants.ENDPOINT, timeout=SECONDS)
        except Exception:  # raised by the client's transport, whose types are not public
            return
        if response.status_code < 500:
            answered.set()

    # In a thread, since looking up a name heeds no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()
