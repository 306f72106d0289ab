"""The processor's name, which energies measured on it are kept by."""

from pathlib import Path

from engine.backends.processor import processor_name


def test_it_is_named_as_its_maker_does(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nprocessor\t: 1\nmodel name\t: x\n")
    assert processor_name(tmp_path / "cpuinfo") == "AMD EPYC 7B13"


def test_what_cannot_be_told_has_a_name_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t:\n")
    assert processor_name(tmp_path / "cpuinfo")
    assert processor_name(tmp_path / "none")
