"""Tables as CSV."""

import csv
import io
from urllib.parse import unquote

import pytest

from reports.page.csv import download, sheet
from reports.page.model import Cell, Head, Table, Tag


def read(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sheet(table))))


def one(head: Head, cell: Cell) -> dict[str, str]:
    (row,) = read(Table("caption", [head], [[cell]]))
    return row


def test_csv_holds_values_and_not_what_is_printed() -> None:
    assert one(Head("Speedup", True), Cell("1.33×", 4 / 3)) == {"Speedup": "1.33333333"}
    assert one(Head("Pairs", True), Cell("1,250", 1250.0)) == {"Pairs": "1250"}
    assert one(Head("Peak", True), Cell("1 GiB", 1073741825)) == {"Peak": "1073741825"}
    assert one(Head("Speedup", True), Cell("–")) == {"Speedup": ""}
    assert one(Head("Engine"), Cell("–", "–")) == {"Engine": ""}
    assert one(Head("T", True), Cell("0.7", 0.7, setting=True)) == {"T": "0.7"}


def test_csv_parts_what_a_cell_puts_together() -> None:
    interval = one(Head("95 % interval", True), Cell("[1.20, 1.50]", 1.2, parts=(1.2, 1.5)))
    assert interval == {"95 % interval low": "1.2", "95 % interval high": "1.5"}
    marked = one(Head("Method"), Cell("fast", "fast", tags=[Tag("lossy"), Tag("2 failed")]))
    assert marked == {"Method": "fast", "Marks": "lossy; 2 failed"}
    below = one(Head("writing", True), Cell("1.50×", 1.5, detail="2.25"))
    assert below == {"writing": "1.5", "writing, below": "2.25"}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "  =", "＝"])
def test_csv_holds_no_formula(start: str) -> None:
    evil = f'{start}HYPERLINK("x")'
    row = one(Head(evil), Cell(evil, evil, tags=[Tag(evil)]))
    assert len(row) == 2
    assert all(value.startswith("'") for value in row.values())
    assert next(iter(row)).startswith("'")
    assert one(Head("Change", True), Cell("-2 %", -0.02)) == {"Change": "-0.02"}
    assert one(Head("Text"), Cell("-3.5", "-3.5")) == {"Text": "-3.5"}


def test_a_download_is_the_csv_itself() -> None:
    table = Table("caption", [Head('say "a,b"'), Head("hash #")], [[Cell("50 %"), Cell("ü\n<&'")]])
    address = download(table)
    kind, _, data = address.partition(",")
    assert kind == "data:text/csv;charset=utf-8"
    assert unquote(data) == sheet(table)
    assert not set(address) & set("\"<>#%\n '") - {"%"}
    assert download(Table("c", [Head("lone \ud800")], []))  # no text breaks the page
