"""Makes virtual environments that see the packages of this one, and a package of their own."""

import sysconfig
import venv
from pathlib import Path


def make_environment(folder: Path, *, visible: tuple[str, ...] = (), **packages: tuple[str, str]) -> str:
    """The path of a new environment's python. `packages`: per name a version and the source of its module."""
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    site.joinpath("visible.pth").write_text("\n".join((sysconfig.get_path("purelib"), *visible)))
    for name, (version, source) in packages.items():
        site.joinpath(f"{name}.py").write_text(source)
        facts = site / f"{name}-{version}.dist-info"
        facts.mkdir()
        facts.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder / "bin" / "python")
