"""Whether the addresses of everything that is known by name still answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from milo_restore.files import registry
from milo_restore.files.download import TIMEOUT

HUB = "https://huggingface.co"


def addresses() -> dict[str, list[str]]:
    """Every address of the catalogue, by the asset's name.

    Of a base on the Hugging Face hub it is the file that lists its parts, at its revision.
    """
    upstream, index = registry.upstream(), registry.dataset_index()
    found = {name: [registry.weight_file(name).url] for name in upstream["weights"]}
    for name, table in upstream["bases"].items():
        pairs = (address.split("@") for address in table["addresses"])
        found[name] = [f"{HUB}/{repository}/resolve/{commit}/model_index.json" for repository, commit in pairs]
    for name, table in upstream["datasets"].items():
        found[name] = [file.url for file in index.get(name, {}).values()] or list(table.get("urls", ()))
    return found


def refusals(urls: Sequence[str], timeout: float = TIMEOUT) -> dict[str, str]:
    """Ask addresses for their heads, and say which do not answer, and how.

    Args:
        urls: what to ask.
        timeout: seconds to wait for each.

    Returns:
        Of those that do not answer well: what was said. Nothing is downloaded.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(lambda url: _refusal(url, timeout), urls)
        return {url: answer for url, answer in zip(urls, answers) if answer is not None}


def _refusal(url: str, timeout: float) -> str | None:
    import requests

    try:
        status = requests.head(url, allow_redirects=True, timeout=timeout).status_code
    except requests.exceptions.RequestException as error:
        return f"no answer ({type(error).__name__})"
    return None if status < 400 else f"the server says {status}"
