"""Saving and loading a network with its model card: packaged weights, folders, and models of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ifan.config import NetworkConfig, to_dict

if TYPE_CHECKING:
    from ifan.network import IFAN

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
RESEARCH = "license: other\nlicense_name: research-use-only"
DRAWN = "toy"
"""The dataset that is drawn, not photographed: nobody's licence binds what is trained on it."""


@dataclass(frozen=True, slots=True)
class Training:
    """Facts of a run for its model card: ``datasets`` maps names to numbers of training samples, ``figures`` maps
    ``dataset/task`` to the metrics of the validation split; ``init`` names the weights it began from."""

    datasets: Mapping[str, int]
    steps: int
    figures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    init: str | None = None


def model_card(config: NetworkConfig, training: Training | None = None) -> str:
    """Markdown that says what saved weights are: tasks, data, figures, limits and licence.

    Nothing is claimed that is not known: weights saved without a `Training` have no data and no figures on their card.
    """
    licence, why = _licence(training)
    tags = "".join(f"- {tag}\n" for tag in ("face-analysis", *(t.name.replace("_", "-") for t in config.tasks)))
    head = f"---\nlibrary_name: ifan\n{licence}\ntags:\n{tags}---\n"
    tasks = "".join(f"| {t.name} | {t.kind} | {', '.join(t.classes)} |\n" for t in config.tasks)
    size = config.image_size
    return "\n".join(
        (
            f"{head}# Weights for ifan\n",
            f"A network of the iFAN graph (arXiv 1711.06055) for faces of {size} x {size} pixels.\n",
            f"| task | kind | classes or points |\n|---|---|---|\n{tasks}",
            _data(training),
            "**Limits.** The figures are those of the validation split alone. A class is a label that strangers gave "
            "to a picture: it says nothing certain about a person.",
            "**Do not use** to decide anything about a person, to identify or to watch people.",
            f"**Licence.** {why} The code of ifan is Apache-2.0.\n",
            'Use: `ifan.load("FOLDER")("photo.jpg")`, with the folder that holds this page.\n',
        )
    )


def _licence(training: Training | None) -> tuple[str, str]:
    """The licence for the card's header, and a sentence about it."""
    if training is None:
        return (
            "license: unknown",
            "Not stated: the terms of the data that these weights were trained on bind their use.",
        )
    if training.init is not None:
        return RESEARCH, f"Research use only, unless the weights they began from ({training.init}) allow more."
    if set(training.datasets) <= {DRAWN}:
        return "license: apache-2.0", "Apache-2.0: they were trained on drawn faces alone."
    names = ", ".join(training.datasets)
    return RESEARCH, f"Research use only, unless the terms of every dataset ({names}) allow more."


def _data(training: Training | None) -> str:
    if training is None:
        return "**Data and figures.** Not recorded: saved from Python, not by `ifan train`.\n"
    data = ", ".join(f"{name} ({count:,} samples)" for name, count in training.datasets.items())
    begun = f" They began from {training.init}." if training.init else ""
    lines = [f"**Data.** {training.steps:,} steps on {data}.{begun}\n"]
    rows = [
        f"| {name} | {metric} | {value:.4g} |"
        for name, metrics in training.figures.items()
        for metric, value in metrics.items()
        if isinstance(value, (int, float))
    ]
    lines += ["| validation split | metric | value |\n|---|---|---|", *rows, ""] if rows else ["**Figures.** None.\n"]
    return "\n".join(lines)


class HubModel:
    """``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of a network; only the Hub needs huggingface_hub."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: str = "cpu",
    ) -> IFAN:
        """Network of saved weights, in eval mode and fp32.

        Args:
            name_or_path: packaged weights (`ifan.weights.available`), a model folder or a run, or ``owner/name`` on the
                Hub, which alone is looked for on the network.
            revision, cache_dir, local_files_only: as of ``huggingface_hub``, for models of the Hub.
            device: where the network goes.

        Raises ``ValueError`` for files that are damaged or do not belong together: every tensor of the configuration
        must be there, and no other; ``ImportError`` where huggingface_hub is needed and missing.
        """
        source = Path(name_or_path).expanduser()
        if HUB_ID.fullmatch(str(name_or_path)) and not source.exists():
            hub = _hub()
            where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
            try:
                files = [
                    hub.hf_hub_download(str(name_or_path), n, **where) for n in ("model.safetensors", "config.json")
                ]
            except (OSError, ValueError) as error:
                first = str(error).strip().splitlines()[0]
                raise ValueError(f"{name_or_path}: no such folder, and not found on the Hub ({first})") from error
            source = Path(files[0]).parent
        from ifan.weights import load_network

        return load_network(source, device)

    def save_pretrained(self, folder: str | Path, *, training: Training | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card, ``README.md``, to ``folder``.

        A card that is there already stays, unless ``training`` says what to write.
        """
        from safetensors.torch import save_file

        network, target = cast("IFAN", self), Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({"network": to_dict(network.config)}, indent=2, sort_keys=True)
        (target / "config.json").write_text(settings, encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
        card = target / "README.md"
        if training is not None or not card.exists():
            card.write_text(model_card(network.config, training), encoding="utf-8")

    def push_to_hub(self, name: str, *, training: Training | None = None, private: bool = True) -> str:
        """Put the network with its card on the Hub as ``owner/name``; returns the address of the commit."""
        api = _hub().HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, training=training)
            return str(api.upload_folder(repo_id=name, folder_path=folder))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("models of the Hub need huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub
