"""What a start of the app is told from outside: one frozen value, read from `MERGESCOPE_*` variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """Where things lie and what visitors may do.

    `runs` holds jobs and their merged models, `cache` what can be measured anew; by default it lies beside `runs`. `single_owner`: everybody who opens the page is one person (a local
    start); otherwise each browser owns what it made. `local_folders`: whether folders of this machine may be named as
    models. `largest_download`: bytes that may be downloaded of one model of the Hub; None for any number, 0 where the Hub is
    not asked. `sign_in`: whether visitors may sign in with their Hugging Face account.
    """

    demo: Path = ROOT / "examples" / "demo"
    runs: Path = ROOT / "runs"
    cache: Path | None = None
    device: str = "auto"
    single_owner: bool = True
    local_folders: bool = True
    largest_download: int | None = None
    sign_in: bool = False
    host: str = "127.0.0.1"
    port: int = 7860

    @property
    def hub(self) -> bool:
        """Whether models of the Hub may be named."""
        return self.largest_download != 0

    @property
    def downloads(self) -> Path:
        """Where the records of downloads are kept, by owner."""
        return self.runs / ".downloads"

    @property
    def reports(self) -> Path:
        """Where inspections are kept by content."""
        return (self.cache or self.runs.resolve().parent / "cache") / "reports"

    @property
    def history(self) -> Path:
        """Where runs and their scores are kept."""
        return self.runs / "history.sqlite"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read MERGESCOPE_RUNS, MERGESCOPE_CACHE, MERGESCOPE_DEVICE, MERGESCOPE_SHARED, MERGESCOPE_LARGEST_DOWNLOAD,
        MERGESCOPE_HOST, MERGESCOPE_PORT.

        `MERGESCOPE_SHARED=1` is for a server that several people use. On a Hugging Face Space it is the default.
        MERGESCOPE_LARGEST_DOWNLOAD is in bytes, such as 5e9; on a shared server it is 0 unless it is set.
        Visitors may sign in on a Space whose README says `hf_oauth: true`, which sets OAUTH_CLIENT_ID.
        """
        on_space = "SPACE_ID" in environment
        shared = environment.get("MERGESCOPE_SHARED", "1" if on_space else "0") == "1"
        cache = environment.get("MERGESCOPE_CACHE")
        largest = environment.get("MERGESCOPE_LARGEST_DOWNLOAD", "0" if shared else "")
        return cls(
            runs=Path(environment.get("MERGESCOPE_RUNS", ROOT / "runs")),
            cache=Path(cache) if cache else None,
            device=environment.get("MERGESCOPE_DEVICE", "auto"),
            single_owner=not shared,
            local_folders=not shared,
            largest_download=int(float(largest)) if largest else None,
            sign_in=on_space and "OAUTH_CLIENT_ID" in environment,
            host=environment.get("MERGESCOPE_HOST", "0.0.0.0" if on_space else "127.0.0.1"),
            port=int(environment.get("MERGESCOPE_PORT", "7860")),
        )
