"""PTX to C++: a function a kernel, registers as local variables, memory and barriers through machine.h.

Only what the project's kernels are made of is known: anything else is an `Untranslatable`, which fails the tests until
it is added here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

FLOATS = ("f32", "f64")
REGISTERS = {"p": "bool", "h": "u16", "rs": "u16", "f": "f32", "r": "u32", "fd": "f64", "rd": "u64"}
SPECIAL = {
    "%tid.x": "current->x", "%tid.y": "current->y", "%tid.z": "current->z",
    "%ntid.x": "launch.block[0]", "%ntid.y": "launch.block[1]", "%ntid.z": "launch.block[2]",
    "%ctaid.x": "block_index[0]", "%ctaid.y": "block_index[1]", "%ctaid.z": "block_index[2]",
    "%nctaid.x": "launch.grid[0]", "%nctaid.y": "launch.grid[1]", "%dynamic_smem_size": "launch.dynamic_bytes",
}  # fmt: skip
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d*)\]")
LABEL = re.compile(r"^\$?([\w$]+):$")
ROUNDINGS = {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "sat", "ftz"}


class Untranslatable(Exception):
    """An instruction or operand that is not known here."""


def to_cpp(kernels: dict[str, str]) -> str:
    """Return the C++ of kernels (name to PTX of one entry each)."""
    parts, table = ['#include "machine.h"\n'], []
    for name, ptx in kernels.items():
        kernel = _Kernel(name, ptx)
        parts.append(kernel.function())
        table.append(f'{{"{name}", run_{name}, {kernel.static_shared}}}')
    parts.append(f"const Kernel kernels[] = {{{', '.join(table)}}};\nconst int kernel_count = {len(table)};\n")
    return "\n".join(parts)


def barriers(ptx: str) -> list[int]:
    """Return the lines of the barriers in a kernel's PTX, as complaints count them."""
    return [
        number for number, line in enumerate(ptx.split("\n"), 1) if re.search(r"\bbar\.sync\b|\bbarrier\.sync", line)
    ]


def parameters(ptx: str) -> int:
    """Return how many parameters the entry has."""
    return len(re.findall(r"\.param\s+\.\w+", ptx[ptx.index(".visible .entry") :].split("\n{", 1)[0]))


class _Kernel:
    def __init__(self, name: str, ptx: str) -> None:
        self.name = name
        head, self._body = ptx[ptx.index(".visible .entry") :].split("\n{", 1)
        self._first_line = ptx[: len(ptx) - len(self._body)].count("\n") + 1
        self._parameters = {found: i for i, found in enumerate(re.findall(r"\.param\s+\.\w+\s+(\w+)", head))}
        self._shared: dict[str, int] = {}
        end = 0
        declared = SHARED.findall(ptx)
        for alignment, variable, size in declared:
            if size:
                step = max(int(alignment), 8)
                self._shared[variable] = -(-end // step) * step
                end = self._shared[variable] + int(size)
        self.static_shared = -(-end // 16) * 16
        for _, variable, size in declared:
            if not size:  # dynamic: behind all that is static
                self._shared[variable] = self.static_shared

    def function(self) -> str:
        registers, lines = [], []
        for number, statement in self._statements():
            if label := LABEL.match(statement):
                lines.append(f"{label[1].replace('$', '_')}: step();")
            elif declared := re.match(r"\.reg\s+\.\w+\s+%([a-z]+)<(\d+)>", statement):
                kind = REGISTERS.get(declared[1])
                if kind is None:
                    raise Untranslatable(statement)
                garbage = {"bool": "false", "f32": "bits<f32>((u32)launch.garbage)", "f64": "bits<f64>(launch.garbage)"}
                start = garbage.get(kind, f"({kind})launch.garbage")
                registers += [f"{kind} R{declared[1]}{i} = {start};" for i in range(int(declared[2]))]
            elif not re.match(r"\.pragma|\.reg\s+\.b32\s+%temp$", statement):  # %temp is written, and never read
                lines.append(self._instruction(statement, number))
        return f"static void run_{self.name}() {{\n" + "\n".join(registers + lines) + "\n}\n"

    def _statements(self) -> list[tuple[int, str]]:
        """Return (line, text) of each label, declaration and instruction, joined where it goes over several lines."""
        found: list[tuple[int, str]] = []
        text, began = "", 0
        for number, line in enumerate(self._body.split("\n"), self._first_line):
            line = re.sub(r"//.*", "", line).strip()
            if not line or (not text and line in "{}"):
                continue
            began = began if text else number
            text = f"{text} {line}".strip()
            if LABEL.match(text) or text.endswith(";"):
                found.append((began, text.rstrip("; ")))
                text = ""
        return found

    # -- operands ------------------------------------------------------------------------------------------------------

    def _value(self, operand: str, kind: str) -> str:
        """Return an expression of C++ type `kind` for an operand that is read."""
        if operand in SPECIAL:
            return f"({kind})({SPECIAL[operand]})"
        if found := re.match(r"%([a-z]+)(\d+)$", operand):
            own, name = REGISTERS[found[1]], f"R{found[1]}{found[2]}"
            if (kind in FLOATS) != (own in FLOATS):  # the bits, which registers of the other kind hold
                return (
                    f"bits<{kind}>(({'u' + kind[1:]}){name})" if kind in FLOATS else f"({kind})bits<u{own[1:]}>({name})"
                )
            return f"({kind})({name})"
        if operand.startswith("0f"):
            return f"bits<f32>(0x{operand[2:]}u)"
        if operand.startswith("0d"):
            return f"bits<f64>((u64)0x{operand[2:]}ull)"
        if re.match(r"-?\d+$", operand):
            return f"({kind})({int(operand) % 2**64}ull)"
        if operand in self._shared:
            return f"({kind}){self._shared[operand]}ull"
        raise Untranslatable(f"operand {operand} in {self.name}")

    def _address(self, operand: str) -> str:
        found = re.match(r"\[([%\w]+)(?:\+(-?\d+))?\]$", operand)
        if found is None:
            raise Untranslatable(f"address {operand} in {self.name}")
        return f"({self._value(found[1], 'u64')} + (u64)(s64)({found[2] or 0}))"

    def _set(self, register: str, kind: str, expression: str) -> str:
        """Return the statement that gives a register a value of C++ type `kind`, widened by its sign."""
        found = re.match(r"%([a-z]+)(\d+)$", register)
        if found is None:
            raise Untranslatable(f"register {register} in {self.name}")
        own, name = REGISTERS[found[1]], f"R{found[1]}{found[2]}"
        if own in FLOATS and kind not in FLOATS:
            return f"{name} = bits<{own}>(({'u' + own[1:]})({expression}));"
        if own not in FLOATS and kind in FLOATS:
            return f"{name} = bits<u{kind[1:]}>({expression});"
        if kind.startswith("s") and own != "bool":
            return f"{name} = ({own})(s64)({kind})({expression});"
        return f"{name} = ({own})({expression});"

    # -- instructions --------------------------------------------------------------------------------------------------

    def _instruction(self, text: str, line: int) -> str:
        condition = ""
        if guarded := re.match(r"@(!?)%(p\d+)\s+(.*)", text):
            condition, text = f"if ({guarded[1]}R{guarded[2]}) ", guarded[3]
        operation, _, rest = text.partition(" ")
        operands = [one.strip() for one in re.split(r",\s*(?![^{]*\})", rest.strip())] if rest.strip() else []
        parts = operation.split(".")
        translate: Callable[..., str] | None = getattr(self, f"_{parts[0]}", None)
        if translate is None:
            raise Untranslatable(f"{text} in {self.name}, line {line}")
        return f"{condition}{{ {translate(parts, operands, line)} }}"

    @staticmethod
    def _type(parts: list[str]) -> str:
        kind = parts[-1]
        if kind == "pred":
            return "bool"
        if not re.match(r"[bsuf](8|16|32|64)$", kind):
            raise Untranslatable(".".join(parts))
        return kind.replace("b", "u")

    def _unsigned(self, parts: list[str]) -> str:
        """Where the sign makes no difference C++ must not see it: what overflows there is undefined."""
        return self._type(parts).replace("s", "u")

    def _bra(self, parts: list[str], operands: list[str], line: int) -> str:
        return f"goto {operands[0].lstrip('$').replace('$', '_')};"

    def _ret(self, parts: list[str], operands: list[str], line: int) -> str:
        return "return;"

    def _bar(self, parts: list[str], operands: list[str], line: int) -> str:
        if parts[:2] != ["bar", "sync"] or operands != ["0"]:
            raise Untranslatable(f"{'.'.join(parts)} {operands}")
        return f"barrier({line});"

    @staticmethod
    def _space(parts: list[str]) -> str:
        """Return "global" or "shared"; an access that names no memory is of global memory, or is out of bounds."""
        if parts[1] in ("const", "local", "param"):
            raise Untranslatable(".".join(parts))
        return "shared" if parts[1] == "shared" else "global"

    def _ld(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        if parts[1] == "param":
            return self._set(operands[0], kind, f"({kind})launch.parameters[{self._parameters[operands[1][1:-1]]}]")
        address = self._address(operands[1])
        call = f"load_shared<{{}}>({address}, {line})"
        if self._space(parts) == "global":
            call = f"load_global<{{}}>({address}, {str('nc' in parts).lower()}, {line})"
        registers = operands[0].strip("{}").split(",")
        if len(registers) == 1:
            return self._set(operands[0], kind, call.format(kind))
        vector = f"struct alignas({len(registers)} * sizeof({kind})) Vector {{ {kind} part[{len(registers)}]; }};"
        sets = " ".join(self._set(one.strip(), kind, f"vector.part[{i}]") for i, one in enumerate(registers))
        return f"{vector} const Vector vector = {call.format('Vector')}; {sets}"

    def _st(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        address, registers = self._address(operands[0]), operands[1].strip("{}").split(",")
        store = f"store_{self._space(parts)}"
        if len(registers) == 1:
            return f"{store}<{kind}>({address}, {self._value(operands[1], kind)}, {line});"
        values = ", ".join(self._value(one.strip(), kind) for one in registers)
        vector = f"struct alignas({len(registers)} * sizeof({kind})) Vector {{ {kind} part[{len(registers)}]; }};"
        return f"{vector} {store}<Vector>({address}, Vector{{{{{values}}}}}, {line});"

    def _atom(self, parts: list[str], operands: list[str], line: int) -> str:
        if parts != ["atom", "shared", "add", "u32"]:
            raise Untranslatable(".".join(parts))
        return self._set(
            operands[0], "u32", f"shared_add({self._address(operands[1])}, {self._value(operands[2], 'u32')}, {line})"
        )

    def _mov(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        if operands[0].startswith("{"):  # a register's two halves, of which one may be for nobody
            halves = enumerate(one.strip() for one in operands[0].strip("{}").split(","))
            value = self._value(operands[1], "u64")
            return " ".join(self._set(one, "u32", f"(u32)({value} >> {32 * i})") for i, one in halves if one != "%temp")
        if operands[1].startswith("{"):
            low, high = (self._value(one.strip(), "u32") for one in operands[1].strip("{}").split(","))
            return self._set(operands[0], "u64", f"((u64){high} << 32) | {low}")
        return self._set(operands[0], kind, self._value(operands[1], kind))

    def _cvta(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._set(operands[0], "u64", self._value(operands[1], "u64"))

    def _cvt(self, parts: list[str], operands: list[str], line: int) -> str:
        to, source = (part for part in parts[1:] if part not in ROUNDINGS)
        if "rmi" in parts and to == source == "f64":
            return self._set(operands[0], "f64", f"std::floor({self._value(operands[1], 'f64')})")
        if "rzi" in parts and source in FLOATS and to in ("s32", "s64"):
            return self._set(operands[0], to, f"ptx_truncate<{to}>({self._value(operands[1], source)})")
        if set(parts) & (ROUNDINGS - {"rn"}) or (source in (*FLOATS, "f16") and to not in (*FLOATS, "f16")):
            raise Untranslatable(".".join(parts))
        if to == "f16":
            return self._set(operands[0], "u16", f"to_half({self._value(operands[1], 'f32')})")
        if source == "f16":
            return self._set(operands[0], "f32", f"from_half({self._value(operands[1], 'u16')})")
        to, source = to.replace("b", "u"), source.replace("b", "u")
        return self._set(operands[0], to, f"({to})({self._value(operands[1], source)})")

    def _binary(self, sign: str, kind: str, operands: list[str]) -> str:
        a, b = (self._value(one, kind) for one in operands[1:3])
        return self._set(operands[0], kind, f"{a} {sign} {b}")

    def _add(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._binary("+", self._unsigned(parts), operands)

    def _sub(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._binary("-", self._unsigned(parts), operands)

    def _mul(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        if kind in FLOATS or parts[1] == "lo":
            return self._binary("*", self._unsigned(parts), operands)
        width = int(kind[1:])
        wide = {8: "16", 16: "32", 32: "64"}.get(width)
        large = f"{kind[0]}{wide}" if wide else ("__int128" if kind[0] == "s" else "unsigned __int128")
        a, b = (f"({large})({self._value(one, kind)})" for one in operands[1:3])
        if parts[1] == "wide":
            return self._set(operands[0], large, f"{a} * {b}")
        if parts[1] == "hi":
            return self._set(operands[0], kind, f"({kind})(({a} * {b}) >> {width})")
        raise Untranslatable(".".join(parts))

    def _mad(self, parts: list[str], operands: list[str], line: int) -> str:
        if parts[1] != "lo":
            raise Untranslatable(".".join(parts))
        kind = self._unsigned(parts)
        a, b, c = (self._value(one, kind) for one in operands[1:])
        return self._set(operands[0], kind, f"{a} * {b} + {c}")

    def _fma(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        return self._set(operands[0], kind, f"std::fma({', '.join(self._value(one, kind) for one in operands[1:])})")

    def _div(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        if kind in FLOATS:
            self._need("rn", parts)
            return self._binary("/", kind, operands)
        return self._divided(kind, operands, "false", line)

    def _rem(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._divided(self._type(parts), operands, "true", line)

    def _divided(self, kind: str, operands: list[str], remainder: str, line: int) -> str:
        a, b = (self._value(one, kind) for one in operands[1:])
        return self._set(operands[0], kind, f"ptx_divide<{kind}>({a}, {b}, {remainder}, {line})")

    @staticmethod
    def _need(rounding: str, parts: list[str]) -> None:
        if rounding not in parts or "ftz" in parts:
            raise Untranslatable(".".join(parts))

    def _rcp(self, parts: list[str], operands: list[str], line: int) -> str:
        self._need("rn", parts)
        kind = self._type(parts)
        return self._set(operands[0], kind, f"1 / {self._value(operands[1], kind)}")

    def _sqrt(self, parts: list[str], operands: list[str], line: int) -> str:
        self._need("rn", parts)
        kind = self._type(parts)
        return self._set(operands[0], kind, f"std::sqrt({self._value(operands[1], kind)})")

    def _and(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._binary("&", self._type(parts), operands)

    def _or(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._binary("|", self._type(parts), operands)

    def _xor(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._binary("^", self._type(parts), operands)

    def _not(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        return self._set(operands[0], kind, f"{'!' if kind == 'bool' else '~'}{self._value(operands[1], kind)}")

    def _neg(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._unsigned(parts)
        return self._set(operands[0], kind, f"{'-' if kind in FLOATS else '0 - '}{self._value(operands[1], kind)}")

    def _abs(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        value = self._value(operands[1], kind)
        if kind in FLOATS:
            return self._set(operands[0], kind, f"std::fabs({value})")
        return self._set(operands[0], kind, f"{value} < 0 ? ({kind})(0 - (u64){value}) : {value}")

    def _shl(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._shifted("shl", self._unsigned(parts), operands)

    def _shr(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._shifted("shr", self._type(parts), operands)

    def _shifted(self, way: str, kind: str, operands: list[str]) -> str:
        value, count = self._value(operands[1], kind), self._value(operands[2], "u32")
        return self._set(operands[0], kind, f"ptx_{way}<{kind}>({value}, {count})")

    def _shf(self, parts: list[str], operands: list[str], line: int) -> str:
        if parts != ["shf", "r", "wrap", "b32"]:
            raise Untranslatable(".".join(parts))
        low, high, count = (self._value(one, "u32") for one in operands[1:])
        return self._set(operands[0], "u32", f"(u32)((((u64){high} << 32) | {low}) >> ({count} & 31))")

    def _selp(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        a, b = (self._value(one, kind) for one in operands[1:3])
        return self._set(operands[0], kind, f"{self._value(operands[3], 'bool')} ? {a} : {b}")

    def _setp(self, parts: list[str], operands: list[str], line: int) -> str:
        if len(parts) != 3:
            raise Untranslatable(".".join(parts))
        kind, comparison = self._type(parts), parts[1]
        a, b = (self._value(one, kind) for one in operands[1:])
        unordered = f"({a} != {a} || {b} != {b})"
        if comparison in COMPARISONS:
            ordered = f"!{unordered} && " if kind in FLOATS else ""
            return self._set(operands[0], "bool", f"{ordered}{a} {COMPARISONS[comparison]} {b}")
        if comparison in ("nan", "num"):
            return self._set(operands[0], "bool", unordered if comparison == "nan" else f"!{unordered}")
        if comparison.endswith("u") and comparison[:-1] in COMPARISONS:
            return self._set(operands[0], "bool", f"{unordered} || {a} {COMPARISONS[comparison[:-1]]} {b}")
        raise Untranslatable(".".join(parts))

    def _min(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._extreme("min", self._type(parts), operands)

    def _max(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._extreme("max", self._type(parts), operands)

    def _extreme(self, which: str, kind: str, operands: list[str]) -> str:
        a, b = (self._value(one, kind) for one in operands[1:])
        function = f"ptx_{which}" if kind in FLOATS else f"std::{which}"
        return self._set(operands[0], kind, f"{function}<{kind}>({a}, {b})")

    def _prmt(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._of_words("ptx_prmt", operands)

    def _dp4a(self, parts: list[str], operands: list[str], line: int) -> str:
        if parts[1:] != ["u32", "u32"]:
            raise Untranslatable(".".join(parts))
        return self._of_words("ptx_dp4a", operands)

    def _of_words(self, function: str, operands: list[str]) -> str:
        return self._set(
            operands[0], "u32", f"{function}({', '.join(self._value(one, 'u32') for one in operands[1:])})"
        )

    def _bfi(self, parts: list[str], operands: list[str], line: int) -> str:
        kind = self._type(parts)
        a, b = (self._value(one, kind) for one in operands[1:3])
        position, length = (self._value(one, "u32") for one in operands[3:])
        return self._set(operands[0], kind, f"ptx_bfi<{kind}>({a}, {b}, {position}, {length})")

    def _popc(self, parts: list[str], operands: list[str], line: int) -> str:
        return self._set(
            operands[0], "u32", f"(u32)__builtin_popcountll({self._value(operands[1], self._type(parts))})"
        )
