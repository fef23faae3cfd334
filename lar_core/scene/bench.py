"""Which scene a run trains and acts in, decided once and kept in its config.yaml.

`libero`: LIBERO's own assets and human demonstrations, rendered again from their states, at its own placements: what papers
report. `embedded`: the stand-in pack and the scripted expert, which need no network. `auto`: the first where it can be had.
"""

from __future__ import annotations

from pathlib import Path

from ..run.config import RunConfig
from ..run.errors import LarError
from ..run.folder import DATA, RUNS
from ..run.settings import PAIRED, Profile
from .demonstrations import check_offered
from .placements import OTHER_SENTENCE
from .setup import needed_files, resolve_assets

ELSEWHERE = ("wide", "counterfactual")  # where a policy must see, and must listen: LIBERO's own placements ask for neither


def settled(config: RunConfig, folder: Path | None = None, data: Path = DATA) -> RunConfig:
    """`config` with its bench decided: what its run folder says, else libero where it can be had, else embedded.

    folder: of the run (default: runs/NAME). Under libero the demonstrations are official ones, unless others are named.
    """
    bench, kept = config.profile.bench, Path(folder or RUNS / config.name) / "config.yaml"
    if bench == "auto" and kept.exists():
        bench = RunConfig.load(kept).profile.bench
    if bench == "embedded":
        return config.replace(bench=bench)
    if bench == "libero":
        return _libero(config)
    try:
        wanted = _libero(config)
        _check_at_hand(wanted, data)
        return wanted
    except LarError as error:
        print("bench=embedded, which a run keeps: the stand-in scene and the scripted expert, whose numbers compare with no "
              f"paper's, because LIBERO's own cannot be had. {error}")
        return config.replace(bench="embedded")


def elsewhere(profile: Profile) -> list[str]:
    """Placements at which a policy of LIBERO's own scene acts after its own (auto: as libero); embedded has none."""
    paired = any(task in OTHER_SENTENCE for task in profile.tasks)
    return [placement for placement in ELSEWHERE if profile.bench != "embedded" and (paired or placement not in PAIRED)]


def _libero(config: RunConfig) -> RunConfig:
    own = {"demos": "official", "render_demos": True} if config.profile.demos == "expert" else {}
    return config.replace(bench="libero", **own)


def _check_at_hand(config: RunConfig, data: Path) -> None:
    """Bring the assets, and raise LarError where they, or the demonstrations, are not to be had."""
    needed_files(resolve_assets("official"))
    check_offered(config.profile, data)
