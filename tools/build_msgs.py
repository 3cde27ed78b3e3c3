"""Builds a wheel of a ROS 2 message package with the generators of the ros-* wheels and gcc alone.

What `colcon build` would install for Python and C, without colcon, CMake or a ROS installation:
Python classes and their extension modules, the libraries lib<package>__*.so, the .msg, .idl and
type hash files, and the ament index markers by which ROS tools find packages. Runs in the virtual
environment that holds the ros-* wheels: `python tools/build_msgs.py ehrnet_msgs --install`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = Path(sys.prefix)
SHARE, LIB, INCLUDE = PREFIX / "share", PREFIX / "lib", PREFIX / "include"
C, TYPES, PY = "rosidl_generator_c", "rosidl_typesupport_c", "rosidl_generator_py"
FAST, SPECT = "rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"
IMPLEMENTATIONS = [FAST, SPECT]  # what rosidl_typesupport_c chooses from at run time


class BuildError(Exception):
    """One sentence: what failed and what to do."""


@dataclass(frozen=True)
class Package:
    """A message package.

    Attributes:
        root: its folder.
        name: from package.xml.
        version: from package.xml.
        declared: the packages it depends on, from package.xml.
        interfaces: those of them that hold messages, and theirs.
        messages: the .msg files, sorted.
    """

    root: Path
    name: str
    version: str
    declared: list[str]
    interfaces: list[str]
    messages: list[Path]

    @staticmethod
    def read(root: Path) -> Package:
        """The package in a folder. Raises BuildError: not such a folder, or messages missing."""
        if not (root / "package.xml").is_file():
            raise BuildError(f"there is no package.xml in {root}: give the folder of the messages.")
        name, version, declared = _package_xml(root)
        messages = sorted((root / "msg").glob("*.msg"))
        if not messages:
            raise BuildError(f"there are no .msg files in {root / 'msg'}.")
        index = SHARE / "ament_index/resource_index/rosidl_interfaces"
        todo, seen = [*declared, "builtin_interfaces"], []
        while todo:
            package = todo.pop(0)
            if package not in seen and (index / package).exists():
                seen.append(package)
                todo += _package_xml(SHARE / package)[2]
        return Package(root, name, version, declared, seen, messages)


def _package_xml(folder: Path) -> tuple[str, str, list[str]]:
    xml = ET.parse(folder / "package.xml").getroot()
    tags = ("depend", "build_depend", "exec_depend")
    dependencies = [str(e.text).strip() for tag in tags for e in xml.findall(tag)]
    name, version = (str(xml.findtext(tag)).strip() for tag in ("name", "version"))
    return name, version, list(dict.fromkeys(dependencies))


def generate(package: Package, work: Path) -> None:
    """Writes sources to work/<generator>/ and .idl and hashes to work/idl/, as rosidl's CMake does.

    Raises:
        BuildError: the generators are not installed or refuse a message.
    """
    try:
        import rosidl_generator_c
        import rosidl_generator_py
        import rosidl_typesupport_c
        import rosidl_typesupport_fastrtps_c
        import rosidl_typesupport_introspection_c
        from rosidl_adapter.msg import convert_msg_to_idl
        from rosidl_generator_type_description import generate_type_hash
    except ModuleNotFoundError as error:
        raise BuildError(
            f"{error.name} is missing in {sys.prefix}: install requirements/demo.txt there."
        ) from None

    idl = work / "idl"
    (idl / "msg").mkdir(parents=True)
    for message in package.messages:
        relative = message.relative_to(package.root)
        with contextlib.redirect_stdout(io.StringIO()):  # it reports every file
            convert_msg_to_idl(package.root, package.name, relative, idl / "msg")
    names = [f"msg/{message.stem}" for message in package.messages]
    known = [f"{d}:{p}" for d in package.interfaces for p in sorted((SHARE / d).glob("*/*.idl"))]

    def arguments(generator: str, target: Path) -> str:
        target.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "package_name": package.name,
            "output_dir": str(target),
            "template_dir": str(SHARE / generator / "resource"),
            "idl_tuples": [f"{idl}:{name}.idl" for name in names],
            "ros_interface_dependencies": known,
            "ros_interface_files": [str(message) for message in package.messages],
            "include_paths": [f"{d}:{SHARE / d}" for d in package.interfaces],
            "target_dependencies": [],
            "type_description_tuples": [f"{name}.idl:{idl / name}.json" for name in names],
        }
        path = work / f"{generator}.json"
        path.write_text(json.dumps(values))
        return str(path)

    def sources(generator: str) -> str:
        return arguments(generator, work / generator / package.name)

    generate_type_hash(arguments("rosidl_generator_type_description", idl))
    rosidl_generator_c.generate_c(sources(C))
    rosidl_typesupport_c.generate_c(sources(TYPES), IMPLEMENTATIONS)
    rosidl_typesupport_introspection_c.generate_c(sources(SPECT))
    rosidl_typesupport_fastrtps_c.generate_typesupport_fastrtps_c(sources(FAST))
    rosidl_generator_py.generate_py(sources(PY), [TYPES, *IMPLEMENTATIONS])
    (work / PY / package.name / "__init__.py").touch()
    for generator in (C, FAST, SPECT):
        name = f"{generator}__visibility_control.h"
        text = (SHARE / generator / "resource" / f"{name}.in").read_text()
        text = text.replace("@PROJECT_NAME_UPPER@", package.name.upper())
        header = work / generator / package.name / "msg" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text.replace("@PROJECT_NAME@", package.name))


def compile_libraries(package: Package, work: Path) -> Path:
    """Compiles what generate() wrote; gives the folder of libraries and extension modules.

    Raises:
        BuildError: no compiler, no headers of Python, or the compiler failed.
    """
    import numpy

    python_include = sysconfig.get_paths()["include"]
    if not Path(python_include, "Python.h").is_file():
        raise BuildError(
            f"the headers of Python are missing ({python_include}/Python.h): install them "
            f"(on Debian and Ubuntu: apt install python3.{sys.version_info[1]}-dev)."
        )
    includes: list[Path | str] = [work / g for g in (C, FAST, SPECT, PY)]
    includes += [python_include, numpy.get_include()]
    includes += [*sorted(d for d in INCLUDE.iterdir() if d.is_dir()), INCLUDE]
    flags = ["-fPIC", "-O1", "-w", *(f"-I{path}" for path in includes)]
    flags += [f"-D{g.upper()}_BUILDING_DLL_{package.name}" for g in (C, FAST, SPECT)]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")

    def library(generator: str) -> str:
        return f"lib{package.name}__{generator}.so"

    def module(implementation: str) -> str:
        return f"{package.name}_s__{implementation}{suffix}"

    units: dict[str, list[Path]] = {}
    for generator in (C, FAST, SPECT, PY, TYPES):
        files = sorted((work / generator).rglob("*"))
        files = [p for p in files if p.suffix in (".c", ".cpp") and "_s.ep." not in p.name]
        units[library(generator)] = files
    for implementation in (TYPES, FAST, SPECT):
        entry = f"_{package.name}_s.ep.{implementation}.c"
        units[module(implementation)] = [work / PY / package.name / entry]

    objects: dict[Path, Path] = {}
    for source in sorted((s for unit in units.values() for s in unit), key=lambda s: s.suffix):
        objects[source] = work / "objects" / f"{len(objects)}.o"
    (work / "objects").mkdir()
    build = work / "lib"
    build.mkdir()

    def compile_one(source: Path) -> None:
        cxx = source.suffix == ".cpp"
        driver = ["g++", "-std=c++17"] if cxx else ["gcc", "-std=c11", "-D_GNU_SOURCE"]
        _run([*driver, *flags, "-c", str(source), "-o", str(objects[source])])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, reversed(objects)))  # C++, which takes longest, first

    def link(name: str, kind: str, own: list[str], extra: list[str], origin: str) -> None:
        libraries = [f"-l:{library(g)}" for g in own]
        for dependency in package.interfaces:
            candidates = [f"lib{dependency}__{g}.so" for g in (kind, *own)]
            libraries += [f"-l:{c}" for c in dict.fromkeys(candidates) if (LIB / c).exists()]
        libraries += [f"-l{n}" for n in (*extra, "rosidl_runtime_c", TYPES, "rcutils", "rmw")]
        driver = "g++" if kind == FAST else "gcc"
        command = [driver, "-shared", "-o", str(build / name)]
        command += [str(objects[source]) for source in units[name]]
        command += [f"-L{build}", f"-L{LIB}", "-Wl,--enable-new-dtags,--as-needed"]
        # As the ros-* wheels do: libraries in <prefix>/lib, modules three folders further down.
        command += [f"-Wl,-rpath,{origin}", f"-Wl,-rpath-link,{LIB}", *libraries]
        _run(command)

    fast = ["fastcdr", FAST, "rosidl_typesupport_fastrtps_cpp"]
    link(library(C), C, [], [], "$ORIGIN")
    link(library(TYPES), TYPES, [], [], "$ORIGIN")
    link(library(FAST), FAST, [C], fast, "$ORIGIN")
    link(library(SPECT), SPECT, [C], [SPECT], "$ORIGIN")
    link(library(PY), PY, [C, TYPES], [], "$ORIGIN")
    for implementation in (TYPES, FAST, SPECT):
        extra = {FAST: fast, SPECT: [SPECT]}.get(implementation, [])
        own = [PY, C, implementation]
        link(module(implementation), implementation, own, extra, "$ORIGIN/../../..")
    return build


def _run(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"there is no {command[0]}: install a C and C++ compiler (apt install g++)."
        )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{command[0]} failed on {command[-3]}:\n{done.stderr.strip()}")


def write_wheel(package: Package, work: Path, build: Path) -> Path:
    """Packs everything into a wheel; pip puts its data folder into the environment's prefix."""
    tag = f"cp3{sys.version_info[1]}-cp3{sys.version_info[1]}-"
    tag += sysconfig.get_platform().replace("-", "_").replace(".", "_")
    stem = f"{package.name}-{package.version}"
    info = f"{stem}.dist-info"
    files = dict(_contents(package, work, build, f"{stem}.data/data"))
    requires = [f"Requires-Dist: ros-{d.replace('_', '-')}" for d in package.interfaces]
    metadata = ["Metadata-Version: 2.1", f"Name: {package.name}", f"Version: {package.version}"]
    files[f"{info}/METADATA"] = "\n".join([*metadata, *requires, ""]).encode()
    wheel = ["Wheel-Version: 1.0", "Generator: build_msgs", "Root-Is-Purelib: false", f"Tag: {tag}"]
    files[f"{info}/WHEEL"] = "\n".join([*wheel, ""]).encode()
    record = []
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path = work / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(name, content)
    return path


def _contents(package: Package, work: Path, build: Path, data: str) -> Iterator[tuple[str, bytes]]:
    classes = work / PY
    for path in classes.rglob("*.py"):
        yield path.relative_to(classes).as_posix(), path.read_bytes()
    for path in build.iterdir():
        folder = f"{data}/lib" if path.name.startswith("lib") else package.name
        yield f"{folder}/{path.name}", path.read_bytes()
    share, index = f"{data}/share/{package.name}", f"{data}/share/ament_index/resource_index"
    yield f"{share}/package.xml", (package.root / "package.xml").read_bytes()
    listed = []
    for message in package.messages:
        idl = work / "idl" / "msg" / message.stem
        for path in (message, idl.with_suffix(".idl"), idl.with_suffix(".json")):
            yield f"{share}/msg/{path.name}", path.read_bytes()
        listed += [f"msg/{message.stem}.idl", f"msg/{message.name}"]
    yield f"{index}/packages/{package.name}", b""
    yield f"{index}/rosidl_interfaces/{package.name}", "\n".join(sorted(listed)).encode()
    yield f"{index}/package_run_dependencies/{package.name}", ";".join(package.declared).encode()


def build(root: Path, work: Path) -> Path:
    """The wheel of the message package in ``root``, built in ``work``, which is emptied first."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    package = Package.read(root.resolve())
    generate(package, work.resolve())
    return write_wheel(package, work, compile_libraries(package, work.resolve()))


def main() -> int:
    """Command line; 1 when it could not be built."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("package", type=Path, help="folder with package.xml and msg/")
    parser.add_argument("--work", type=Path, default=Path("build/msgs"), help="emptied, then used")
    parser.add_argument("--install", action="store_true", help="install the wheel with pip")
    args = parser.parse_args()
    try:
        wheel = build(args.package, args.work)
    except BuildError as error:
        print(f"build_msgs: {error}", file=sys.stderr)
        return 1
    print(wheel)
    if args.install:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall"]
        return subprocess.run([*command, str(wheel)]).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
