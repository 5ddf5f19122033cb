"""Where the bytes are: a folder, a file, the bundled model, or the Hugging Face hub and its cache."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minivit.errors import CheckpointError, ModelUnavailableError, UsageError

BUNDLED = {"minivit/cifar10-vit": Path(__file__).parent.parent / "pretrained" / "cifar10-vit"}

# One of these holds the weights; safetensors first, so that a pickle is read only where nothing else is there.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one checkpoint, all on disk."""

    name: str  # hub id or path, as it was asked for
    revision: str | None  # commit of the hub, None for local files
    config: dict  # config.json
    preprocessor: dict | None  # preprocessor_config.json, where there is one
    shards: tuple[Path, ...]  # weight files, together all tensors


def find(id_or_path: str | os.PathLike[str], revision: str | None = None) -> Source:
    """All files of a checkpoint; what the hub has and the cache has not is downloaded.

    Args:
        id_or_path: a folder with config.json and weights, one weights file with config.json beside
            it, a name of BUNDLED, or a hub id such as "google/vit-base-patch16-224".
        revision: branch, tag or commit of the hub.

    Raises:
        ModelUnavailableError: no such path or hub model, or no way to the hub; says what was tried.
        CheckpointError: the place is there and is no checkpoint.
        UsageError: a revision was asked of local files.
    """
    name = os.fspath(id_or_path)
    path = BUNDLED.get(name, Path(name))
    if path.exists() or not _is_hub_id(name):
        if revision is not None:
            raise UsageError(f"{name} is on disk; revision {revision!r} has a meaning only for hub models")
        return _find_local(path, name)
    return _find_on_hub(name, revision)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def _find_local(path: Path, name: str) -> Source:
    if not path.exists():
        raise ModelUnavailableError(f"{name}: no such file or folder, and not a hub id of the form owner/model")
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
        if weights is None:
            raise CheckpointError(f"{name}: no weights in this folder; expected one of {', '.join(WEIGHTS)}")
    else:
        weights = path
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{config}: missing; it says what the tensors in {weights.name} are")
    preprocessor = folder / "preprocessor_config.json"
    return Source(
        name=name,
        revision=None,
        config=read_json(config),
        preprocessor=read_json(preprocessor) if preprocessor.is_file() else None,
        shards=tuple(folder / shard for shard in _shards(weights)),
    )


def _shards(weights: Path) -> list[str]:
    """File names of the shards behind a weights file; an index lists several."""
    if weights.suffix != ".json":
        return [weights.name]
    weight_map = read_json(weights).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{weights}: no weight_map; it should say which shard holds which tensor")
    kind = Path(weights.name.removesuffix(".index.json")).suffix
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or Path(shard).suffix != kind:
            raise CheckpointError(f"{weights}: shard {shard!r} is not the plain name of a {kind} file")
    return sorted(set(weight_map.values()))


def read_json(path: Path) -> dict:
    """A JSON file that must hold an object; raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def _find_on_hub(repo: str, revision: str | None) -> Source:
    """The files through huggingface_hub, which honours its cache, token, HF_HUB_OFFLINE and HF_ENDPOINT.

    A file that is in the cache is used as it is, without asking the hub whether there is a newer one.
    """
    config = _fetch(repo, "config.json", revision)
    if config is None:
        raise CheckpointError(f"{repo}: the repository has no config.json, so it is not a transformers checkpoint")
    # Every later file comes from the same commit, even if the branch moves meanwhile.
    commit = config.parent.name
    weights = _first(repo, WEIGHTS, commit)
    if weights is None:
        raise CheckpointError(f"{repo}: the repository has no weights; expected one of {', '.join(WEIGHTS)}")
    shards = [weights]
    if weights.suffix == ".json":
        shards = []
        for shard in _shards(weights):
            path = _fetch(repo, shard, commit)
            if path is None:
                raise CheckpointError(f"{repo}: {weights.name} lists {shard}, which the repository does not have")
            shards.append(path)
    try:
        preprocessor = _fetch(repo, "preprocessor_config.json", commit)
    except ModelUnavailableError:
        # The weights came from the cache. There a file the repository does not have looks like one
        # that was never fetched; without it the model runs, and refuses to prepare pictures.
        preprocessor = None
    return Source(
        name=repo,
        revision=commit,
        config=read_json(config),
        preprocessor=read_json(preprocessor) if preprocessor else None,
        shards=tuple(shards),
    )


def _first(repo: str, files: tuple[str, ...], commit: str) -> Path | None:
    """The first of several files that the repository has, or if the hub is out of reach, the cache."""
    unavailable = None
    for file in files:
        try:
            path = _fetch(repo, file, commit, online=unavailable is None)
        except ModelUnavailableError as error:
            unavailable = unavailable or error
        else:
            if path:
                return path
    if unavailable:
        raise unavailable
    return None


def _fetch(repo: str, file: str, revision: str | None, *, online: bool = True) -> Path | None:
    """One file of a hub repository, from the cache or the network; None when the repository has no such file."""
    from huggingface_hub import (
        constants,
        errors,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    where = f"{constants.ENDPOINT}/{repo}"
    try:
        cached = try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        # Known to be absent: final for a commit, while a branch may have gained the file since.
        if cached is not None and re.fullmatch("[0-9a-f]{40}", revision or ""):
            return None
        if constants.HF_HUB_OFFLINE or not online:
            reason = "the network is switched off (--offline or HF_HUB_OFFLINE)"
        else:
            with suppress(errors.EntryNotFoundError):
                # Asked once before hf_hub_download, which would knock at a closed door for minutes.
                get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
            return Path(hf_hub_download(repo, file, revision=revision))
    except errors.HFValidationError as error:
        raise ModelUnavailableError(f"{repo}: neither a path here nor a hub id ({_cause(error)})") from None
    except errors.GatedRepoError:
        message = f"{repo}: gated; accept its terms at {where}, then log in: hf auth login"
        raise ModelUnavailableError(message) from None
    except errors.RepositoryNotFoundError:
        message = f"neither a path here nor found at {where}; check the id, or log in if it is private: hf auth login"
        raise ModelUnavailableError(f"{repo}: {message}") from None
    except errors.RevisionNotFoundError:
        raise ModelUnavailableError(f"{repo}: no revision {revision!r} at {where}") from None
    except errors.LocalEntryNotFoundError as error:
        reason = _cause(error)
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # the hub's client lets its transport's many types through
        reason = _cause(error)
    fetch = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    raise ModelUnavailableError(
        f"{repo}: {file} is not cached and could not be downloaded from {where}: {reason}; "
        f"the cache is {constants.HF_HUB_CACHE}; fetch it where there is a network: {fetch}"
    )


def _cause(error: BaseException) -> str:
    """The innermost reason of a chain of exceptions, on one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    response = getattr(error, "response", None)
    if response is not None:
        said = response.headers.get("X-Error-Message")
        return f"it answered {response.status_code}" + (f", {said}" if said else "")
    return " ".join(str(error).split()) or type(error).__name__
