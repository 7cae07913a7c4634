"""Errors that a command printed for a person, judged by the data in them: their wording is free."""


def error_line(printed: str, *data: object) -> str:
    """The only line on a command's stderr. It is an error and names each of `data`: keys, files, numbers, options."""
    (line,) = printed.splitlines()
    assert line.startswith("error: "), line
    missing = [str(datum) for datum in data if str(datum) not in line]
    assert not missing, f"{line}\nlacks {missing}"
    return line
