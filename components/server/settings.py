"""What a start of the app is told from outside: one frozen value, read from `MERGESCOPE_*` variables.

Each field of `Settings` is the one declaration of a setting: its variable, what may be written, both defaults, and its line of
the README.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

from components.server.setting_values import (
    NO_LIMIT,
    PREFIX,
    Told,
    a_device,
    a_folder,
    limit,
    opposite,
    span,
    switch,
    whole,
)
from merging import MergingError
from merging.judging.history import FILE

ROOT = Path(__file__).resolve().parents[2]
COUNT = "a whole number from 1"
BYTES = "bytes, such as 5e9, or any"


@dataclass(frozen=True)
class Settings:
    """Where things lie and what visitors may do; None where something has no limit.

    `single_owner`: everybody who opens the page is one person (a local start); otherwise each browser owns what it made.
    `sign_in`: whether visitors may sign in with their Hugging Face account. The other fields say themselves what they are.
    """

    demo: Path = ROOT / "examples" / "demo"
    runs: Annotated[
        Path,
        Told(
            "RUNS",
            a_folder,
            "a folder",
            "where jobs, merged models and the history of runs are kept",
            alone="`runs` beside the app",
        ),
    ] = ROOT / "runs"
    cache: Annotated[
        Path | None,
        Told(
            "CACHE",
            a_folder,
            "a folder",
            "where inspections are kept, so that the same models are measured once, at most 1 GB; on a shared server also "
            "uploads and the models of the Hub, unless `GRADIO_TEMP_DIR` and `HF_HUB_CACHE` say where",
            alone="`cache` beside the runs",
        ),
    ] = None
    device: Annotated[
        str,
        Told(
            "DEVICE",
            a_device,
            "auto, cpu, cuda or cuda:N",
            "where models are merged and asked: `auto`, `cpu`, `cuda` or `cuda:N`",
        ),
    ] = "auto"
    single_owner: Annotated[
        bool,
        Told(
            "SHARED",
            opposite,
            "1 or 0",
            "`1`: several people use this server, and each browser sees only its own",
            alone="`0` (`1` on a Space)",
            shared="1",
        ),
    ] = True
    local_folders: Annotated[
        bool,
        Told(
            "LOCAL_FOLDERS",
            switch,
            "1 or 0",
            "`1`: folders of this machine may be named as models",
            shared="0",
        ),
    ] = True
    largest_model: Annotated[
        int | None,
        Told(
            "LARGEST_MODEL",
            limit(1),
            "parameters, such as 2e9, or any",
            "parameters that one model may have",
            shared="2e9",
        ),
    ] = None
    largest_download: Annotated[
        int | None,
        Told(
            "LARGEST_DOWNLOAD",
            limit(0),
            BYTES,
            "bytes that may be downloaded of one model of the Hub; `0`: the Hub is not asked",
            shared="4e9",
        ),
    ] = None
    largest_upload: Annotated[
        int,
        Told(
            "LARGEST_UPLOAD",
            whole(1000),
            "a whole number of bytes from 1000",
            "bytes of one file that is uploaded",
        ),
    ] = 5_000_000
    owner_disk: Annotated[
        int | None,
        Told("OWNER_DISK", limit(0), BYTES, "bytes that one visitor's jobs and zips may take", shared="6e9"),
    ] = None
    disk: Annotated[
        int | None,
        Told(
            "DISK",
            limit(0),
            BYTES,
            "bytes that all of it may take: runs, zips, uploads, inspections and downloaded models",
            shared="30e9",
        ),
    ] = None
    ttl: Annotated[
        int | None,
        Told(
            "TTL",
            span,
            "a time such as 90m, 24h or 7d, or any",
            "how long a shared server keeps what a visitor made after their last visit, and a downloaded model that nobody reads",
            shared="24h",
        ),
    ] = None
    owner_jobs: Annotated[
        int, Told("OWNER_JOBS", whole(1), COUNT, "jobs that one visitor may have waiting or running")
    ] = 4
    jobs: Annotated[int, Told("JOBS", whole(1), COUNT, "jobs of all visitors that may wait or run")] = 16
    longest_job: Annotated[
        int | None,
        Told(
            "LONGEST_JOB", span, "a time such as 30m or 2h, or any", "how long one job may run", shared="30m"
        ),
    ] = None
    events: Annotated[
        int,
        Told(
            "EVENTS",
            whole(16),
            "a whole number from 16",
            "events of all pages that may wait; opening a page is ten of them",
        ),
    ] = 256
    longest_prompt: Annotated[
        int, Told("LONGEST_PROMPT", whole(1), COUNT, "letters of a question, and of a system prompt")
    ] = 4000
    longest_reply: Annotated[
        int, Told("LONGEST_REPLY", whole(1, 4096), "a whole number from 1 to 4096", "tokens of a reply")
    ] = 512
    longest_chat: Annotated[int, Told("LONGEST_CHAT", whole(1), COUNT, "questions of one conversation")] = 100
    sign_in: bool = False
    host: Annotated[
        str,
        Told(
            "HOST",
            str,
            "a name or an address",
            "where the page is served",
            alone="`127.0.0.1` (`0.0.0.0` on a Space)",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Told("PORT", whole(1, 65535), "a whole number from 1 to 65535", "its port")] = 7860

    @property
    def hub(self) -> bool:
        """Whether models of the Hub may be named."""
        return self.largest_download != 0

    @property
    def downloads(self) -> Path:
        """Where the records of downloads are kept, by owner."""
        return self.runs / ".downloads"

    @property
    def pushes(self) -> Path:
        """Where the records of pushes to the Hub are kept, by owner."""
        return self.runs / ".pushes"

    @property
    def kept(self) -> Path:
        """Where what can be measured or downloaded anew is kept."""
        return self.cache or self.runs.resolve().parent / "cache"

    @property
    def hub_cache(self) -> Path:
        """Where a shared server keeps the models it downloads, unless huggingface_hub was told another place."""
        return self.kept / "hub"

    @property
    def reports(self) -> Path:
        """Where inspections are kept by content."""
        return self.kept / "reports"

    @property
    def history(self) -> Path:
        """Where runs and their scores are kept."""
        return self.runs / FILE

    @classmethod
    def declared(cls) -> dict[str, Told]:
        """Field -> the variable that sets it, in the order of the README."""
        hints = get_type_hints(cls, include_extras=True).items()
        return {name: hint.__metadata__[0] for name, hint in hints if get_origin(hint) is Annotated}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables of `declared`.

        On a Hugging Face Space the server is shared unless it says otherwise, and served to everybody. Visitors may sign in
        on a Space whose README says `hf_oauth: true`, which sets OAUTH_CLIENT_ID.

        Raises:
            MergingError: naming every variable that is unknown, or whose value is none.
        """
        declared = cls.declared()
        problems = list(_unknown(environment, declared))
        on_space = "SPACE_ID" in environment
        usual = {"host": "0.0.0.0", "single_owner": "1"} if on_space else {}
        shared = environment.get(declared["single_owner"].variable, usual.get("single_owner")) == "1"
        values: dict[str, Any] = {}
        for name, told in declared.items():
            text = environment.get(told.variable) or usual.get(name) or (told.shared if shared else "")
            if not text:
                continue
            try:
                values[name] = told.read(text.strip())
            except (ValueError, KeyError, OverflowError, RuntimeError):
                problems.append(f"{told.variable} is {text[:60]!r}; write {told.form}.")
        if problems:
            raise MergingError(" ".join(problems))
        return cls(**values, sign_in=on_space and "OAUTH_CLIENT_ID" in environment)


def _unknown(environment: Mapping[str, str], declared: Mapping[str, Told]) -> list[str]:
    known = [told.variable for told in declared.values()]
    sentences = []
    for variable in sorted(set(environment) - set(known)):
        if variable.startswith(PREFIX):
            near = difflib.get_close_matches(variable, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "; the README lists those there are."
            sentences.append(f"{variable} is no setting{hint}")
    return sentences


def settings_table() -> str:
    """Every variable with its defaults and its meaning, as Markdown."""
    lines = ["| variable | alone | on a shared server | meaning |", "|---|---|---|---|"]
    defaults = Settings()
    for name, told in Settings.declared().items():
        alone = told.alone or f"`{_written(getattr(defaults, name))}`"
        shared = f"`{told.shared}`" if told.shared else ""
        lines.append(f"| `{told.variable}` | {alone} | {shared} | {told.meaning} |")
    return "\n".join(lines)


def _written(value: object) -> str:
    if value is None:
        return NO_LIMIT
    return str(int(value)) if isinstance(value, bool) else str(value)
