"""Packaging from settings.ini, the one place for name, version and dependencies."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
docs = settings["docs_requirements"].split()

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license=settings["license_name"],
    keywords=settings["keywords"],
    packages=["wwgan", "wwgan.evidence"],
    package_data={"wwgan": ["py.typed"]},
    entry_points={"console_scripts": ["wwgan = wwgan.cli:main"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={"docs": docs, "dev": settings["dev_requirements"].split() + docs},
)
