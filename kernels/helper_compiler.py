"""How helpers are compiled: into their callers alone, without the steps that a caller's recipe leaves out.

Numba makes machine code of every function that it compiles, also of one that is only ever inlined: a fifth of the time
that a kernel took. And it types and optimises both sides of `if recipe.erase:` before LLVM sees which of them is dead,
with all the helpers that are called there; here they go before Numba looks at them.
"""

from typing import Any

from numba.core import ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, FunctionPass, PassManager, register_pass
from numba.core.ir_utils import get_definition, guard
from numba.core.typed_passes import NativeLowering
from numba.core.untyped_passes import RewriteSemanticConstants


class HelperCompiler(CompilerBase):
    """Numba's pipeline for functions that are never called by themselves: `njit(pipeline_class=HelperCompiler)`."""

    def define_pipelines(self) -> list[PassManager]:
        self.state.flags.no_compile = True
        self.state.library = _HelperLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_ConstantFields, RewriteSemanticConstants)
        passes.add_pass_after(_Declare, NativeLowering)
        passes.finalize()
        return [passes]


class _HelperLibrary(JITCodeLibrary):
    """LLVM's code of a helper, optimised for its callers to take, and not compiled."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=False, analysis_only=False)
class _ConstantFields(FunctionPass):
    """Put numbers in place of the fields of arguments whose types have `constants`; Numba prunes what hangs on them."""

    _name = "fastload_constant_fields"

    def __init__(self) -> None:  # Numba has it abstract
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        constants = [getattr(kind, "constants", None) for kind in state.args]
        changed = False
        for block in state.func_ir.blocks.values():
            for statement in block.find_insts(ir.Assign):
                field = statement.value
                if isinstance(field, ir.Expr) and field.op == "getattr":
                    argument = guard(get_definition, state.func_ir, field.value)
                    if isinstance(argument, ir.Arg) and constants[argument.index] is not None:
                        statement.value = ir.Const(getattr(constants[argument.index], field.attr), field.loc)
                        definitions = state.func_ir._definitions[statement.target.name]
                        definitions[:] = [statement.value if one is field else one for one in definitions]
                        changed = True
        return changed


@register_pass(mutates_CFG=False, analysis_only=True)
class _Declare(AnalysisPass):
    """Tell Numba what its callers find a helper by, where there is no machine code of it."""

    _name = "fastload_declare"

    def __init__(self) -> None:  # Numba has it abstract
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        name = object().__reduce__  # Numba takes only what is built in; each object's is another one
        state.targetctx.insert_user_function(name, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=name)
        return False
