"""Maps the component folders at the root of the repository to `iaunet.<component>`."""

from setuptools import find_packages, setup

COMPONENTS = ("planners", "preprocessing", "inference", "trainers")

setup(
    packages=[
        *find_packages(include=["iaunet", "iaunet.*"]),
        *(
            f"iaunet.{package}"
            for component in COMPONENTS
            for package in find_packages(include=[component, f"{component}.*"])
        ),
    ],
    package_dir={f"iaunet.{component}": component for component in COMPONENTS},
)
