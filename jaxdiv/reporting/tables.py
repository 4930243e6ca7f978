"""A table of texts, printed alike by all programs: on a terminal, in Markdown and on the page."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import rich.table
from rich import box
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts; its cells are never read as markup.

    Attributes:
      heads: of the columns, in one line or two.
      rows: cells; the first of each names its row. A `Text` has a style on a terminal.
      title, caption: above and below the table on a terminal; no other table of a page has its
        title.
      left: the columns of text; the others hold numbers and are aligned to the right.
      fold: the columns that fold where a terminal is narrow, with their smallest widths; all of
        them if None.
      styles: of rows on a terminal, by number, such as `bold`.
      sums: whether the last row has the sums of those above it.
      code: whether Markdown and the page show the first column as code.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    title: str | None = None
    caption: str | None = None
    left: Collection[int] = (0,)
    fold: Mapping[int, int] | None = None
    styles: Mapping[int, str] = dataclasses.field(default_factory=dict)
    sums: bool = False
    code: bool = True

    def terminal(self, *, lines: bool = False) -> rich.table.Table:
        """Returns the table for a terminal, with lines between its cells if `lines`."""
        table = rich.table.Table(title=self.title, caption=self.caption)
        table.caption_justify = table.title_justify = "left"
        if not lines:
            table.box, table.pad_edge, table.collapse_padding = box.SIMPLE_HEAD, False, True
        for i, head in enumerate(self.heads):
            width = {} if self.fold is None else {"no_wrap": i not in self.fold}
            width["min_width"] = (self.fold or {}).get(i)
            justify = "left" if i in self.left else "right"
            table.add_column(Text(head), justify=justify, overflow="fold", **width)
        for i, row in enumerate(self.rows):
            cells = (cell if isinstance(cell, Text) else Text(cell) for cell in row)
            end = self.sums and i == len(self.rows) - 2
            table.add_row(*cells, style=self.styles.get(i, ""), end_section=end)
        return table

    def markdown(self) -> str:
        """Returns the table in Markdown, without title and caption."""
        heads = [" ".join(head.split()) for head in self.heads]
        rule = ["---" if i in self.left else "---:" for i in range(len(heads))]
        name = code if self.code else str
        rows = [[name(str(first)), *map(str, others)] for first, *others in self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rule, *rows))


def code(name: str) -> str:
    """Returns a name as code in a Markdown table, in which a backtick or bar ends neither."""
    safe = name.replace("|", "\\|").replace("\n", " ")
    return f"`` {safe} ``" if "`" in safe else f"`{safe}`"
