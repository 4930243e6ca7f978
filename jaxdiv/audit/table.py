"""The codes as a Markdown table, for the docs: python -m jaxdiv.audit.table"""

from jaxdiv.audit.codes import CODES


def markdown() -> str:
    """One row a finding that an audit can make."""
    rows = (f"| `{code}` | {known.severity} | {known.message} |" for code, known in CODES.items())
    return "\n".join(["| code | severity | message |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(markdown())
