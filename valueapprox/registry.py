"""The one registry: optimizers, TD methods, losses, agents and statistics by their names in files and commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Registry"]

Part = TypeVar("Part", bound=Callable[..., Any])  # a class, or a function


class Registry(dict[str, Any]):
    """The classes, or functions, of one kind of part, by name.

    Parameters
    ----------
    needs
        The attribute that a class must have: the kernel that makes it what it is.
    see
        The module that says how such a class is written.
    attempt
        Called with the class; an error that it raises makes the class one that cannot be used.
    label
        The attribute that becomes the name.
    """

    def __init__(self, needs: str, see: str, attempt: Callable[[Any], object], label: str = "name") -> None:
        super().__init__()
        self.needs, self.see, self.attempt, self.label = needs, see, attempt, label

    def register(self, name: str) -> Callable[[Part], Part]:
        """Make a class known by a name: to Python, commands, checkpoints, and the tests of all of its kind.

        Raises
        ------
        TypeError
            If the name or the class's name is taken, its kernel is missing or takes other arguments, a setting has no
            default, or the kernel uses memory that is not there.
        """

        def add(cls: Part) -> Part:
            for other_name, other in self.items():
                if other_name == name or other.__name__ == cls.__name__:
                    raise TypeError(
                        f"name of {cls.__name__} is {name!r}; {other.__name__} is registered as {other_name!r}"
                    )
            if getattr(cls, self.needs, None) is None:
                raise TypeError(f"{self.needs} of {cls.__name__} is missing; expected a kernel, see {self.see}")
            try:
                self.attempt(cls)
            except (TypeError, IndexError, ValueError) as error:
                raise TypeError(f"{cls.__name__} cannot be used: {error}") from error
            setattr(cls, self.label, name)
            self[name] = cls
            return cls

        return add
