"""All settings are in pyproject.toml; this only puts data_manifest.yaml, which lies beside the package, into its wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithManifest(build_py):
    """An editable installation reads the file where it lies, so that there are never two of it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("data_manifest.yaml", str(Path(self.build_lib, "lar_core", "data_manifest.yaml")))


setup(cmdclass={"build_py": WithManifest})
