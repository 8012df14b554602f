"""What pyproject.toml cannot say: a wheel carries the templates of `model_repository/` as captioner's package data."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

TEMPLATES = ("*/config.pbtxt", "*/1/model.py", "*/1/.gitkeep")


class BuildWithTemplates(build_py):
    """Copy the templates beside captioner's modules. An editable install reads them from the checkout instead."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        source = Path(__file__).parent / "model_repository"
        target = Path(self.build_lib) / "captioner" / "model_repository"
        for path in sorted(path for pattern in TEMPLATES for path in source.glob(pattern)):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copyfile(path, copy)


setup(cmdclass={"build_py": BuildWithTemplates})
