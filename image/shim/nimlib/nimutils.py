"""See the package: ``download_models`` and nothing else."""

import os


def download_models() -> None:
    """What ``download-to-cache`` does without options: NIM_MODEL_PROFILE, or the profile that fits best.

    In place of this process, so that signals and the exit code are those of the download.
    """
    os.execvp("download-to-cache", ["download-to-cache"])  # noqa: S606 - no shell is wanted
