"""Find the files of a checkpoint: a folder, a file, the bundled model, torchvision's server, the hub, and caches."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minivit.errors import CheckpointError, ModelUnavailableError, UsageError
from minivit.weights.families.base import Named
from minivit.weights.families.registry import FAMILIES
from minivit.weights.families.timm.shared import normal
from minivit.weights.families.torchvision import models as torchvision

BUNDLED = {"minivit/cifar10-vit": Path(__file__).parent.parent / "pretrained" / "cifar10-vit"}

# One of these holds the weights; safetensors first, so that a pickle is read only where there is nothing else.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# The same in repositories of open_clip, which describes both towers of a CLIP in its own file.
OPEN_CLIP_CONFIG = "open_clip_config.json"
ADAPTER = "adapter_config.json"  # PEFT's description of a LoRA adapter
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one checkpoint, all on disk."""

    name: str  # hub id or path, as given
    revision: str | None  # commit of the hub, None for local files
    config: dict[str, Any]  # config.json
    preprocessor: dict[str, Any] | None  # of processor_config.json or preprocessor_config.json, if there is one
    shards: tuple[Path, ...]  # weight files, together all tensors
    preprocessor_file: str = "preprocessor_config.json"  # which of the two
    family: str | None = None  # as it was asked for, and the next three
    heads: int | None = None  # attention heads of files that do not state them
    prefix: str | None = None  # what stands before the names of the model's tensors
    adapter: Path | None = None  # folder with adapter_config.json: asked for, or the checkpoint's own
    notes: tuple[str, ...] = ()  # what was decided where several files would do


def find(
    id_or_path: str | os.PathLike[str],
    revision: str | None = None,
    family: str | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    heads: int | None = None,
    prefix: str | None = None,
) -> Source:
    """Return all files of a checkpoint, and what was asked for beside them; arguments and errors as `find_files`.

    Args:
        adapter: folder of a LoRA adapter (PEFT) that is merged into the weights.
        heads: attention heads per block, for files whose shapes do not state them.
        prefix: what stands before the names of the model's tensors; others are not of the model.
    """
    folder = None if adapter is None else Path(adapter)
    if folder is not None and not (folder / ADAPTER).is_file():
        raise ModelUnavailableError(f"{os.fspath(folder)}: no adapter, which would be a folder with {ADAPTER}")
    if heads is not None and heads < 1:
        raise UsageError(f"heads is {heads}; it must be at least 1")
    source = find_files(id_or_path, revision, family)
    own = find_beside(source, ADAPTER) if source.revision is None else None
    if folder is None and own is not None:
        folder = own.parent
        note = f"{ADAPTER} beside the weights: its adapter is merged, as transformers does"
        source = replace(source, notes=(*source.notes, note))
    return replace(source, family=family, heads=heads, prefix=prefix, adapter=folder)


def find_files(id_or_path: str | os.PathLike[str], revision: str | None = None, family: str | None = None) -> Source:
    """Return all files of a checkpoint; those that are not cached are downloaded from the hub or torchvision.

    Args:
        id_or_path: a folder with config.json and weights, one weights file with config.json beside
            it, a name of BUNDLED, a hub id such as "google/vit-base-patch16-224", or a name such as
            "torchvision/vit_b_16" or "torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1".
        revision: branch, tag or commit of the hub.
        family: names the format of a weights file without a config.json: "facebook", "jax", or with the
            model's name "torchvision/vit_b_16" or "timm/vit_base_patch16_224". "open_clip" and "open_clip_timm"
            read open_clip_config.json, which is also read where there is no config.json.

    Raises:
        ModelUnavailableError: no such path or hub model, or the hub cannot be reached.
        CheckpointError: the path or repository exists and is no checkpoint.
        UsageError: a revision of local files.
    """
    name = os.fspath(id_or_path)
    path = BUNDLED.get(name, Path(name))
    if path.exists() or not _is_hub_id(name):
        if revision is not None:
            raise UsageError(f"{name} is on disk; revision {revision!r} has a meaning only for hub models")
        return _find_local(path, name, family)
    owner, _, model = name.partition("/")
    if owner == "torchvision":
        if revision is not None:
            raise UsageError(f"{name} has no revisions; its weights are named, as in {name}.IMAGENET1K_V1")
        return _find_at_torchvision(name, model)
    if owner == "timm" and "_clip_quickgelu_" in model:
        # timm keeps the weights for both activations in the repository of the exact GELU; the name selects one.
        source = _find_on_hub(name.replace("_clip_quickgelu_", "_clip_"), revision)
        return replace(source, name=name, config={**source.config, "architecture": model.partition(".")[0]})
    return _find_on_hub(name, revision, open_clip=_is_open_clip(family))


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def _find_local(path: Path, name: str, family: str | None) -> Source:
    if not path.exists():
        raise ModelUnavailableError(f"{name}: no such file or folder, and not a hub id of the form owner/model")
    folder = path if path.is_dir() else path.parent
    both = _is_open_clip(family) or not (folder / "config.json").is_file()
    both = both and (folder / OPEN_CLIP_CONFIG).is_file()
    stated = read_config_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if path.is_dir():
        expected = OPEN_CLIP_WEIGHTS if both else _weights_of(stated or {}, name)
        weights = next((folder / file for file in expected if (folder / file).is_file()), None)
        if weights is None and (folder / ADAPTER).is_file():
            base = read_json(folder / ADAPTER).get("base_model_name_or_path")
            raise CheckpointError(
                f"{name}: only an adapter of {base!r}; load that model with adapter={name!r} (--adapter {name})"
            )
        if weights is None:
            raise CheckpointError(f"{name}: no weights in this folder; expected one of {', '.join(expected)}")
    else:
        weights = path
    if both:
        described = _open_clip_config(folder / OPEN_CLIP_CONFIG)
        return Source(name=name, revision=None, config=described, preprocessor=None, shards=(weights,))
    config = folder / "config.json"
    named = _named(family, weights.name)
    if stated is None and named is None:
        raise CheckpointError(
            f"{config}: missing; it says what the tensors in {weights.name} are. Without it, name the family: "
            "torchvision/MODEL, timm/MODEL, facebook or jax"
        )
    found, where = _processor(folder / file for file in PROCESSORS)
    return Source(
        name=name,
        revision=None,
        config=(named and named.config) or stated or {},
        preprocessor=found or (named and named.preprocessor),
        preprocessor_file=where,
        shards=tuple(folder / shard for shard in _shards(weights)),
    )


def _weights_of(config: dict[str, Any], name: str) -> tuple[str, ...]:
    """Return the names that a checkpoint's weights may have: the one that config.json states, else WEIGHTS.

    transformers reads `transformers_weights`, timm `hf_hub_filename` of its pretrained_cfg.
    """
    file = config.get("transformers_weights") or (config.get("pretrained_cfg") or {}).get("hf_hub_filename")
    if file is None:
        return WEIGHTS
    if not isinstance(file, str) or Path(file).name != file:
        raise CheckpointError(f"{name}: config.json names the weights file {file!r}, which is no plain file name")
    return (file,)


def read_config_json(path: Path) -> dict[str, Any]:
    """Return config.json; timm's in its present form, whatever its age."""
    return normal(read_json(path), str(path))


PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # the first has priority, as in transformers 5


def _processor(paths: Iterable[Path | None]) -> tuple[dict[str, Any] | None, str]:
    """Return the contents of the first of PROCESSORS that describes an image processor, and its name."""
    for path in paths:
        if path is not None and path.is_file():
            given = read_json(path)
            if path.name == PROCESSORS[1]:
                return given, path.name
            if "image_processor" in given:
                nested = given["image_processor"]
                if not isinstance(nested, dict):
                    raise CheckpointError(f"{path}: image_processor is a {type(nested).__name__}, expected an object")
                return nested, path.name
    return None, PROCESSORS[1]


def _is_open_clip(family: str | None) -> bool:
    return (family or "").startswith("open_clip")


def _open_clip_config(path: Path) -> dict[str, Any]:
    """Return open_clip_config.json as a config.json: with a model_type, and both towers at the top."""
    given = read_json(path)
    model = given.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise CheckpointError(f"{path}: no model_cfg with vision_cfg and text_cfg")
    kind = "open_clip_timm" if model["vision_cfg"].get("timm_model_name") else "open_clip"
    return {"model_type": kind, **model, "preprocess_cfg": given.get("preprocess_cfg") or {}}


def _named(family: str | None, file: str) -> Named | None:
    """Return what config.json would say for a family such as "torchvision/vit_b_16"; None where the file must say it.

    Args:
        file: name of the weights file; of a file that torchvision publishes, it says whose preprocessing applies.

    Raises:
        UsageError: torchvision has no such model or weights.
    """
    owner, _, model = (family or "").partition("/")
    by_name = FAMILIES[owner].by_name if owner in FAMILIES else None
    published = torchvision.published(file) if owner == "torchvision" and "." not in model else None
    if published and published.partition(".")[0] == model:
        model = published
    return by_name(model) if by_name else None


def _find_at_torchvision(name: str, model: str) -> Source:
    """Return torchvision's file, from the folder in which torchvision keeps its downloads, or from its server."""
    from torch import hub

    config, preprocessor, file = torchvision.named(model)
    path = Path(hub.get_dir()) / "checkpoints" / str(file)
    if not path.is_file():
        from huggingface_hub import constants

        url = torchvision.URL + str(file)
        if constants.HF_HUB_OFFLINE:
            raise ModelUnavailableError(f"{name}: {path} is not there and HF_HUB_OFFLINE is set; fetch {url}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The name ends in the first digits of the file's SHA-256, which is checked before the file is moved there.
            digest = path.stem.rpartition("-")[2]
            hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        except Exception as error:  # urllib raises many types of its transport
            raise ModelUnavailableError(f"{name}: downloading {url} to {path} failed ({_cause(error)})") from error
    return Source(name=name, revision=None, config=config, preprocessor=preprocessor, shards=(path,))


def _shards(weights: Path) -> list[str]:
    """Return the file names of the shards of a weights file; an index lists several."""
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; CheckpointError names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def _find_on_hub(repo: str, revision: str | None, *, open_clip: bool = False) -> Source:
    """Return the files through huggingface_hub, which uses its cache, token, HF_HUB_OFFLINE and HF_ENDPOINT.

    A file in the cache is used as it is, without asking the hub for a newer one.
    """
    config = None if open_clip else _fetch(repo, "config.json", revision)
    if config is None:
        config, open_clip = _fetch(repo, OPEN_CLIP_CONFIG, revision), True
    if config is None:
        raise CheckpointError(f"{repo}: the repository has no config.json, so it is not a transformers checkpoint")
    # Every later file comes from the same commit, even if the branch moves meanwhile.
    commit = config.parent.name
    if open_clip:
        weights = _first(repo, OPEN_CLIP_WEIGHTS, commit)
        if weights is None:
            raise CheckpointError(f"{repo}: the repository has no weights; expected {', '.join(OPEN_CLIP_WEIGHTS)}")
        described = _open_clip_config(config)
        return Source(name=repo, revision=commit, config=described, preprocessor=None, shards=(weights,))
    stated = read_config_json(config)
    expected = _weights_of(stated, repo)
    weights = _first(repo, expected, commit)
    if weights is None:
        raise CheckpointError(f"{repo}: the repository has no weights; expected one of {', '.join(expected)}")
    shards = [weights]
    if weights.suffix == ".json":
        shards = []
        for shard in _shards(weights):
            path = _fetch(repo, shard, commit)
            if path is None:
                raise CheckpointError(f"{repo}: {weights.name} lists {shard}, which the repository does not have")
            shards.append(path)
    found, where = _processor(_fetch_if_there(repo, file, commit) for file in PROCESSORS)
    return Source(
        name=repo,
        revision=commit,
        config=stated,
        preprocessor=found,
        preprocessor_file=where,
        shards=tuple(shards),
    )


def _fetch_if_there(repo: str, file: str, commit: str) -> Path | None:
    """Return a file that a checkpoint may lack."""
    try:
        return _fetch(repo, file, commit)
    except ModelUnavailableError:
        # The weights came from the cache, where a file that the repository does not have looks like one that was
        # never downloaded. Without a preprocessor the model runs, and refuses to preprocess images.
        return None


def find_beside(source: Source, file: str) -> Path | None:
    """Return one more file of a checkpoint, from its folder or its hub repository; None where it has none."""
    path = source.shards[0].parent / file
    if path.is_file() or source.revision is None:
        return path if path.is_file() else None
    return _fetch_if_there(source.name, file, source.revision)


def _first(repo: str, files: tuple[str, ...], commit: str) -> Path | None:
    """Return the first of several files that is in the repository, or in the cache if the hub cannot be reached."""
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
    """Return one file of a hub repository, from the cache or the network; None if the repository has no such file."""
    from huggingface_hub import (
        constants,
        errors,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    where = without_password(f"{constants.ENDPOINT}/{repo}")
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
                # One request before hf_hub_download, which retries for minutes without a network.
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
    except Exception as error:  # the hub's client raises many types of its transport
        reason = _cause(error)
    fetch = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    raise ModelUnavailableError(
        f"{repo}: {file} is not cached and could not be downloaded from {where}: {reason}; "
        f"the cache is {constants.HF_HUB_CACHE}; fetch it where there is a network: {fetch}"
    )


def _cause(error: BaseException) -> str:
    """Return the innermost reason of a chain of exceptions, on one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    response = getattr(error, "response", None)
    if response is not None:
        said = response.headers.get("X-Error-Message")
        return without_password(f"it answered {response.status_code}" + (f", {said}" if said else ""))
    return without_password(" ".join(str(error).split())) or type(error).__name__


def without_password(text: str) -> str:
    """Return a text without the user and password of its addresses, as HF_ENDPOINT may have them."""
    return re.sub(r"(\w://)[^/?#\s]*@", r"\1", text)
