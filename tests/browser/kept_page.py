"""The app, telling in a file named by `KEPT` how many models the chat keeps in memory."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import app
from components.server.backend import model_cache
from components.server.settings import Settings


def tell() -> None:
    kept, file = model_cache(Settings.from_environment()), Path(os.environ["KEPT"])
    while True:
        file.write_text(str(len(kept)))
        time.sleep(0.1)


if __name__ == "__main__":
    threading.Thread(target=tell, daemon=True).start()
    app.main()
