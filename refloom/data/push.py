"""Putting a folder on the Hugging Face hub as a data set."""

from __future__ import annotations

from pathlib import Path

from refloom.data.rows import BadFile


class HubRefused(Exception):
    """The hub took nothing, or not all; the message says why, and never holds a token."""


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload the files of `folder` in one commit, and give the data set's address. Blocks.

    The hub is that of `HF_ENDPOINT`, the token that of `HF_TOKEN` or of `hf auth login`. A data set
    of this name that is there already is added to, and stays as private as it is. Raises
    `HubRefused`, or `BadFile` for a name that is none.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        made = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            repo_type="dataset",
            commit_message="Add rows and card",
        )
    except HFValidationError as error:
        raise BadFile(f"{repo_id}: is no name of a data set; give OWNER/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise HubRefused(
                f"the hub refused the token ({status}): set HF_TOKEN to one that may write, or run "
                "`hf auth login`"
            ) from error
        said = " ".join(str(error.server_message or error).split())[:200]
        raise HubRefused(f"the hub took nothing ({status}): {said}") from error
    except (httpx2.HTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise HubRefused(f"{api.endpoint}: cannot be reached or understood ({said})") from error
    return f"{api.endpoint}/datasets/{made.repo_id}"
