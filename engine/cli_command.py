"""What every command of ours has beyond typer's: an option that takes one value is not taken twice.

The parser of the command line would keep the last value and say nothing.
"""

from typing import Any

import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    def make_parser(self, ctx: Any) -> Any:
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
            values, rest, order = parse(args)
            for parameter in () if ctx.resilient_parsing else dict.fromkeys(order):
                single = not (parameter.multiple or parameter.is_eager or getattr(parameter, "count", False))
                if parameter.param_type_name == "option" and single and order.count(parameter) > 1:
                    raise typer.BadParameter(
                        "given more than once, and only one can be used: leave the others out",
                        ctx=ctx,
                        param=parameter,
                    )
            return values, rest, order

        parser.parse_args = parse_once
        return parser
