"""A recipe as a Numba type: its fields are constants in every function that takes it, compiled once for each recipe.

As a tuple a recipe would be constant only where all has been compiled into one function; each helper would first be
optimised with the steps of all recipes, which took twice as long.
"""

from typing import Any

from numba.core import types
from numba.core.imputils import lower_constant
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model, typeof_impl

from .recipe import Recipe


class ConstantRecipe(Recipe):
    """A `Recipe` for functions that are compiled for a CPU: `ConstantRecipe(*recipe)`."""


class _RecipeType(types.Type):
    def __init__(self, recipe: Recipe) -> None:
        self.constants = recipe
        super().__init__(name="recipe_" + "_".join(map(str, recipe)))


@typeof_impl.register(ConstantRecipe)
def _type_of(value: ConstantRecipe, context: Any) -> _RecipeType:
    return _RecipeType(value)


register_model(_RecipeType)(models.OpaqueModel)


@lower_constant(_RecipeType)
def _lower(context: Any, builder: Any, kind: _RecipeType, value: ConstantRecipe) -> Any:
    return context.get_dummy_value()


@infer_getattr
class _Fields(AttributeTemplate):
    key = _RecipeType

    def generic_resolve(  # type: ignore[override]  # the base class has a constant there
        self, value: _RecipeType, attr: str
    ) -> types.Type | None:
        return types.int64 if attr in Recipe._fields else None


@lower_getattr_generic(_RecipeType)
def _lower_field(context: Any, builder: Any, kind: _RecipeType, value: Any, name: str) -> Any:
    return context.get_constant(types.int64, getattr(kind.constants, name))
