"""Build of the extension module; everything else is declared in pyproject.toml.

Environment variables:

FASTPDU_REQUIRE_EXT=1   a failure to build the extension is an error, and so is any warning of Cython. Without it a
                        machine that has no C compiler gets the package with the pure Python engine.
FASTPDU_DEBUG=1         bounds checks on, -O0 -g.
FASTPDU_SANITIZE=1      AddressSanitizer and UndefinedBehaviorSanitizer (gcc, clang). Run Python with both
                        libraries in LD_PRELOAD, see CONTRIBUTING.md.
"""

import os
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# setup.py runs with the project's directory as the working directory (PEP 517)
PYX = "src/_fastpdu.pyx"
DEPENDS = ["src/_fastpdu_sys.h", "src/fastpdu/_fastpdu.pxd"]
STAMP = Path("build") / "fastpdu-flavour"


def flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "no", "false", "off")


DEBUG = flag("FASTPDU_DEBUG")
SANITIZE = flag("FASTPDU_SANITIZE")
REQUIRE_EXT = flag("FASTPDU_REQUIRE_EXT")

DIRECTIVES: dict[str, Any] = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "cdivision": not DEBUG,
}


def unix_flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags for gcc and clang."""
    compile_args = [
        "-Wall",
        "-Wextra",
        "-Werror=implicit-function-declaration",
        # what Cython's generated code trips over by design
        "-Wno-unused-parameter",
        "-Wno-unused-function",
        "-Wno-missing-field-initializers",
        "-Wno-cast-function-type",
    ]
    link_args: list[str] = []
    if DEBUG:
        compile_args += ["-O0", "-g", "-UNDEBUG"]
    elif SANITIZE:
        compile_args += ["-O1", "-g"]
    else:
        compile_args += ["-O3"]
    if SANITIZE:
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        compile_args += [*sanitize, "-fno-omit-frame-pointer"]
        link_args += sanitize
    return compile_args, link_args


class BuildExt(build_ext):
    """Translates the .pyx when the extension is really built, so that an sdist needs and ships no generated C."""

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            if DEBUG:
                ext.extra_compile_args, ext.extra_link_args = ["/Od", "/Zi"], ["/DEBUG"]
        else:
            ext.extra_compile_args, ext.extra_link_args = unix_flags()

        # A change of flags must rebuild everything: the stamp gets a new date when its text changes.
        flavour = repr((sorted(DIRECTIVES.items()), ext.extra_compile_args, ext.extra_link_args))
        if not STAMP.exists() or STAMP.read_text(encoding="utf-8") != flavour:
            STAMP.parent.mkdir(parents=True, exist_ok=True)
            STAMP.write_text(flavour, encoding="utf-8")
        ext.depends = [*ext.depends, str(STAMP)]

        if any(source.endswith(".pyx") for source in ext.sources):
            from Cython.Build import cythonize
            from Cython.Compiler import Options

            Options.warning_errors = REQUIRE_EXT
            generated = Path(PYX).with_suffix(".c")
            stale = generated.exists() and generated.stat().st_mtime <= STAMP.stat().st_mtime
            # No build_dir: coverage of the .pyx needs the C file beside it.
            (translated,) = cythonize(
                [ext],
                compiler_directives=DIRECTIVES,
                force=bool(self.force) or stale,
                include_path=["src"],
            )
            sources = ext.sources
            ext.sources = translated.sources
            try:
                super().build_extension(ext)
            finally:
                ext.sources = sources
        else:
            super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            "fastpdu._fastpdu",
            sources=[PYX],
            include_dirs=["src"],
            depends=[name for name in DEPENDS if Path(name).exists()],
            optional=not REQUIRE_EXT,
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
