"""Publishing a folder as a data set on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refloom.errors import HubRefused, InputError
from refloom.settings import hide_user_info

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError


def check_repo_id(repo_id: str) -> None:
    """Raise `InputError` unless `repo_id` is a name that a data set can have on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id}: is not a name of a data set; give OWNER/NAME") from error


def push_folder(folder: Path, repo_id: str, *, private: bool) -> tuple[str, bool]:
    """Upload the files of a folder in one commit. Blocks.

    The hub is that of `HF_ENDPOINT`, the token that of `HF_TOKEN` or `hf auth login`. If the data
    set exists, the files are added to it and its visibility is unchanged.

    Returns:
        The data set's address, and whether it is new.

    Raises:
        HubRefused: The hub cannot be reached or refuses the token or the files.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    hub = hide_user_info(api.endpoint)
    try:
        repo_id, new = _create_repo(api, repo_id, private)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type="dataset",
            commit_message="Add rows and card",
        )
    except HfHubHTTPError as error:
        raise HubRefused(_describe_refusal(error)) from error
    except UnicodeEncodeError as error:
        raise HubRefused("HF_TOKEN or HF_ENDPOINT has characters that are not ASCII") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        reason = hide_user_info(" ".join(str(error).split())[:200])
        raise HubRefused(
            f"{hub}: cannot be reached, or its reply is not valid ({reason})"
        ) from error
    return f"{hub}/datasets/{repo_id}", new


def _create_repo(api: HfApi, repo_id: str, private: bool) -> tuple[str, bool]:
    """Create the data set unless it exists; its full name, and whether it is new."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        created = api.create_repo(repo_id, repo_type="dataset", private=private)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != 409:
            raise
        return repo_id, False
    return str(created.repo_id), True


def _describe_refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return (
            f"the hub refused the token ({status}): set HF_TOKEN to one that may write, or run "
            "`hf auth login`"
        )
    reason = " ".join(str(error.server_message or error).split())[:200]
    return f"the hub refused the upload ({status}): {hide_user_info(reason)}"
