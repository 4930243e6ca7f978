"""The codes as a Markdown table, for the docs: python -m jaxdiv.audit.table"""

from jaxdiv.audit.findings import CODES


def markdown() -> str:
    """Returns a table with one row for each finding that an audit can make."""
    rows = (f"| `{code}` | {entry.severity} | {entry.message} |" for code, entry in CODES.items())
    return "\n".join(["| code | severity | message |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(markdown())
