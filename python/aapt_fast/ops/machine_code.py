# SPDX-License-Identifier: Apache-2.0
"""The CUDA machine code inside the built module, read from its file without any tool of NVIDIA.

nvcc puts a section .nv_fatbin into the module. It is a row of containers, one per compiled file; a container is a row
of entries, each with the machine code of one architecture (a "cubin", itself an ELF file) or with PTX, which the driver
can compile for newer GPUs. A cubin has for each kernel function a section .text.<symbol> with its instructions.

The hash of a kernel covers what a GPU executes of it, so it stays the same when comments, folders or other kernels
change, and `ops/verified.py` can tell whether a GPU has verified exactly this code.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

CONTAINER_MAGIC = 0xBA55ED50
CONTAINER_VERSION = 1
ENTRY_PTX, ENTRY_CUBIN = 1, 2
COMPRESSED = 0x2000 | 0x8000  # LZ4, Zstandard
ARCHITECTURE_ONLY = 0x100000  # sm_90a: runs on 9.0 and nowhere else
FAMILY_ONLY = 0x200000  # sm_100f

ELF_START = b"\x7fELF\x02\x01"  # 64 bits, little endian
NO_BITS = 8  # type of a section without contents in the file
SYMBOLS = 2  # type of the symbol table

# Records of the section .nv.info that carry a 4-byte symbol number and a 4-byte value.
INFO_WITH_SIZE = 4
INFO_REGISTERS, INFO_STACK_FRAME = 0x2F, 0x11


class MachineCodeError(ValueError):
    """A module file whose machine code cannot be read; the message says what was expected and what came."""


@dataclass(frozen=True)
class Function:
    """One kernel function, compiled for one architecture."""

    symbol: str
    code: bytes  # instructions
    constants: tuple[tuple[str, bytes], ...]  # (section, contents) of the constants that the instructions refer to
    registers: int  # per thread
    stack_frame: int  # bytes of local memory per thread


@dataclass(frozen=True)
class Cubin:
    """The machine code of one compiled file for one architecture, for example "sm_90a"."""

    architecture: str
    image: bytes
    functions: tuple[Function, ...]


@dataclass(frozen=True)
class Ptx:
    """The PTX of one compiled file for one virtual architecture, for example "compute_80"."""

    architecture: str
    text: str | None  # None: compressed


@dataclass(frozen=True)
class MachineCode:
    """Everything in a module that a GPU or its driver can take."""

    cubins: tuple[Cubin, ...]
    ptx: tuple[Ptx, ...]

    def architectures(self, kernel: str) -> tuple[str, ...]:
        """The architectures that have machine code of this kernel, sorted."""
        return tuple(sorted({cubin.architecture for cubin in self.cubins if any(_functions_of(kernel, cubin))}))

    def functions(self, kernel: str, architecture: str) -> tuple[Function, ...]:
        """The functions of this kernel (one per instantiation), sorted by symbol."""
        cubins = (cubin for cubin in self.cubins if cubin.architecture == architecture)
        found = [function for cubin in cubins for function in _functions_of(kernel, cubin)]
        return tuple(sorted(found, key=lambda function: function.symbol))


def belongs(symbol: str, kernel: str) -> bool:
    """True if a mangled symbol names a function of this kernel.

    A C++ compiler writes an identifier with its length in front. "channel_concat/portable" is thus found as
    23channel_concat_portable, and not in 29channel_concat_noise_portable.
    """
    name = kernel.replace("/", "_")
    return re.search(rf"(?<!\d){len(name)}{re.escape(name)}", symbol) is not None


@functools.cache
def kernel_hash(kernel: str, module: ModuleType, architecture: str) -> str | None:
    """SHA-256 of a kernel's machine code for one architecture.

    Args:
        kernel: for example "paged_attention/portable".
        module: the compiled module.
        architecture: for example "sm_80".

    Returns:
        64 hexadecimal digits, or None if the module has no machine code of the kernel for this architecture.

    Raises:
        MachineCodeError: the machine code cannot be read.
    """
    functions = machine_code(module).functions(kernel, architecture)
    if not functions:
        return None
    digest = hashlib.sha256()
    for function in functions:
        for name, contents in ((function.symbol, function.code), *function.constants):
            for part in (name.encode(), contents):
                digest.update(struct.pack("<Q", len(part)))  # so that no two lists of parts read the same
                digest.update(part)
    return digest.hexdigest()


@functools.cache
def machine_code(module: ModuleType) -> MachineCode:
    """The machine code in the file of a compiled module; none if it was built without CUDA.

    Raises:
        MachineCodeError: the file is not an ELF file, or it has compressed or unknown machine code.
    """
    file = getattr(module, "__file__", None)
    if not file:
        raise MachineCodeError(f"module: expected one with a file, got {module.__name__} without")
    return read_machine_code(Path(file).read_bytes())


def read_machine_code(library: bytes) -> MachineCode:
    """The machine code in the bytes of a shared library or object file.

    Raises:
        MachineCodeError: not an ELF file, or compressed or unknown machine code.
    """
    cubins: list[Cubin] = []
    ptx: list[Ptx] = []
    for section in _sections(library, "module"):
        if section.name == ".nv_fatbin":
            for entry in _entries(section.contents):
                if entry.kind == ENTRY_PTX:
                    ptx.append(_ptx(entry))
                else:
                    cubins.append(_cubin(entry))
    return MachineCode(tuple(cubins), tuple(ptx))


# ---- the containers ----


@dataclass(frozen=True)
class _Entry:
    kind: int
    flags: int
    architecture: int  # 90
    payload: bytes

    @property
    def suffix(self) -> str:
        return "a" if self.flags & ARCHITECTURE_ONLY else "f" if self.flags & FAMILY_ONLY else ""


def _unpack(layout: str, data: bytes, offset: int, what: str) -> tuple[Any, ...]:
    if offset < 0 or offset + struct.calcsize(layout) > len(data):
        raise MachineCodeError(f"{what}: expected {struct.calcsize(layout)} bytes at {offset}, got the end")
    return struct.unpack_from(layout, data, offset)


def _slice(data: bytes, offset: int, size: int, what: str) -> bytes:
    if offset + size > len(data):
        raise MachineCodeError(f"{what}: expected {size} bytes at {offset}, got {max(len(data) - offset, 0)}")
    return data[offset : offset + size]


def _entries(fatbin: bytes) -> Iterator[_Entry]:
    """The entries of all containers in the contents of .nv_fatbin."""
    position = 0
    while position < len(fatbin):
        if not any(fatbin[position : position + 8]):  # the linker fills up to multiples of 8 bytes
            position += 8
            continue
        magic, version, header, size = _unpack("<IHHQ", fatbin, position, ".nv_fatbin")
        if (magic, version) != (CONTAINER_MAGIC, CONTAINER_VERSION):
            expected = f"{CONTAINER_MAGIC:#x} version {CONTAINER_VERSION}"
            raise MachineCodeError(f".nv_fatbin: expected a container {expected}, got {magic:#x} version {version}")
        if header < 16:
            raise MachineCodeError(f".nv_fatbin: expected a container header of at least 16 bytes, got {header}")
        yield from _entries_of(_slice(fatbin, position + header, size, ".nv_fatbin container"))
        position += header + size


def _entries_of(container: bytes) -> Iterator[_Entry]:
    position = 0
    while position < len(container):
        kind, _, header, size = _unpack("<HHIQ", container, position, ".nv_fatbin entry")
        architecture, flags = _unpack("<I8xQ", container, position + 28, ".nv_fatbin entry")
        if header < 48:
            raise MachineCodeError(f".nv_fatbin: expected an entry header of at least 48 bytes, got {header}")
        if kind not in (ENTRY_PTX, ENTRY_CUBIN):
            raise MachineCodeError(f".nv_fatbin: expected entries with machine code or PTX, got kind {kind}")
        yield _Entry(kind, flags, architecture, _slice(container, position + header, size, ".nv_fatbin entry"))
        position += header + size


def _ptx(entry: _Entry) -> Ptx:
    text = None if entry.flags & COMPRESSED else entry.payload.rstrip(b"\0").decode(errors="replace")
    return Ptx(f"compute_{entry.architecture}{entry.suffix}", text)


def _cubin(entry: _Entry) -> Cubin:
    architecture = f"sm_{entry.architecture}{entry.suffix}"
    if entry.flags & COMPRESSED:
        raise MachineCodeError(
            f"machine code for {architecture}: expected it uncompressed, got it compressed "
            "(aapt_fast builds with -Xfatbin=-compress-mode=none)"
        )
    return Cubin(architecture, entry.payload, tuple(_functions(entry.payload, f"machine code for {architecture}")))


# ---- ELF ----


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    contents: bytes
    link: int


def _sections(elf: bytes, what: str) -> list[_Section]:
    if not elf.startswith(ELF_START):
        raise MachineCodeError(f"{what}: expected a 64-bit ELF file, got bytes that start with {elf[:6].hex(' ')}")
    (table,) = _unpack("<Q", elf, 40, what)
    size, count, names_index = _unpack("<HHH", elf, 58, what)
    headers = [_unpack("<IIQQQQIIQQ", elf, table + i * size, what) for i in range(count)]
    if not headers:
        return []
    if names_index >= count:
        raise MachineCodeError(f"{what}: expected a section with names below {count}, got {names_index}")
    names = _slice(elf, headers[names_index][4], headers[names_index][5], what)
    return [
        _Section(
            name=_text(names, name),
            kind=kind,
            contents=b"" if kind == NO_BITS else _slice(elf, offset, length, what),
            link=link,
        )
        for name, kind, _, _, offset, length, link, *_ in headers
    ]


def _text(table: bytes, offset: int) -> str:
    return table[offset : table.find(b"\0", offset)].decode(errors="replace")


def _functions(cubin: bytes, what: str) -> Iterator[Function]:
    """The kernel functions of a cubin."""
    sections = _sections(cubin, what)
    registers, frames = _symbol_values(sections, what)
    for section in sections:
        if section.name.startswith(".text."):
            symbol = section.name.removeprefix(".text.")
            if symbol not in registers:
                raise MachineCodeError(f"{what}: expected a register count of {symbol}, got none")
            yield Function(
                symbol=symbol,
                code=section.contents,
                constants=tuple(_constants(sections, symbol)),
                registers=registers[symbol],
                stack_frame=frames.get(symbol, 0),
            )


def _constants(sections: list[_Section], symbol: str) -> Iterator[tuple[str, bytes]]:
    """What the instructions read from the cubin: literals of the function, and variables of the whole file.

    Bank 0 holds the launch parameters and bank 4 addresses; both are filled in at run time.
    """
    for section in sections:
        literals = re.fullmatch(r"\.nv\.constant[1235-9]\." + re.escape(symbol), section.name)
        if literals or section.name in (".nv.constant3", ".nv.global.init"):
            yield section.name, section.contents


def _symbol_values(sections: list[_Section], what: str) -> tuple[dict[str, int], dict[str, int]]:
    """(registers, bytes of stack frame) by symbol, from .nv.info."""
    names = _symbol_names(sections, what)
    registers: dict[str, int] = {}
    frames: dict[str, int] = {}
    for section in (section for section in sections if section.name == ".nv.info"):
        position = 0
        while position < len(section.contents):
            form, attribute, size = _unpack("<BBH", section.contents, position, f"{what} .nv.info")
            position += 4
            if form != INFO_WITH_SIZE:  # the value is in the place of the size
                continue
            if attribute in (INFO_REGISTERS, INFO_STACK_FRAME):
                number, value = _unpack("<II", section.contents, position, f"{what} .nv.info")
                name = names[number] if number < len(names) else ""
                (registers if attribute == INFO_REGISTERS else frames)[name] = value
            position += size
    return registers, frames


def _symbol_names(sections: list[_Section], what: str) -> list[str]:
    for table in (section for section in sections if section.kind == SYMBOLS and section.link < len(sections)):
        strings = sections[table.link].contents
        offsets = [_unpack("<I", table.contents, i, what)[0] for i in range(0, len(table.contents), 24)]
        return [_text(strings, offset) for offset in offsets]
    return []


def _functions_of(kernel: str, cubin: Cubin) -> Iterator[Function]:
    return (function for function in cubin.functions if belongs(function.symbol, kernel))
