import pytest

from virtiopy.cli.options import DeviceOptions, parse_mode, parse_size
from virtiopy.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("4K", 4096), ("64M", 64 << 20), ("1g", 1 << 30), ("2TiB", 2 << 40)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "64 apples", "0x10"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="64M"):
        parse_size(text)


def test_a_device_option_is_taken_apart() -> None:
    options = DeviceOptions("--disk", "a.img,readonly=on,queues=3", ["readonly", "queues"])
    assert options.main == "a.img"
    assert options.flag("readonly")
    assert options.number("queues", 1, 1, 8) == 3


def test_what_is_not_given_takes_its_default() -> None:
    options = DeviceOptions("--disk", "a.img", ["readonly", "queues", "serial"])
    assert not options.flag("readonly")
    assert options.number("queues", 1, 1, 8) == 1
    assert options.text("serial", "none") == "none"


def test_a_doubled_comma_belongs_to_the_value() -> None:
    options = DeviceOptions("--disk", "a,,b.img,serial=x,,y", ["serial"])
    assert options.main == "a,b.img"
    assert options.text("serial", "") == "x,y"


@pytest.mark.parametrize(
    "text", ["a,speed=1", "a,readonly", "a,", "a,readonly=on,readonly=off", "a,=on"]
)
def test_unknown_bare_and_doubled_keys_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--disk"):
        DeviceOptions("--disk", text, ["readonly"])


@pytest.mark.parametrize("value", ["0", "9", "-1", "x", "", "1.0"])
def test_numbers_out_of_range_are_refused(value: str) -> None:
    options = DeviceOptions("--disk", f"a,queues={value}", ["queues"])
    with pytest.raises(ConfigError, match="from 1 to 8"):
        options.number("queues", 1, 1, 8)


def test_a_repeatable_key_gives_its_values_in_order() -> None:
    options = DeviceOptions(
        "--console", "stdio,port=a:pty,wait=on,port=b,,c:pty", ["wait"], ["port"]
    )
    assert options.texts("port") == ["a:pty", "b,c:pty"]
    assert options.flag("wait")


def test_a_repeatable_key_may_be_left_out() -> None:
    assert DeviceOptions("--console", "stdio", ["wait"], ["port"]).texts("port") == []


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0777", 0o777)])
def test_a_mode_of_a_socket_is_octal(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "8", "0888", "01777", "0o660", "rw-rw----", "7" * 4400])
def test_what_is_no_mode_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="as in 0660") as refused:
        parse_mode(text)
    assert len(str(refused.value)) < 200


PARTS = {"disk": ("lun", "readonly"), "cdrom": ("lun",)}


def test_what_follows_a_part_is_its_own() -> None:
    text = ",queues=2,disk=a,,b,lun=1,cdrom=c,lun=2,disk=d,readonly=on"
    options = DeviceOptions("--scsi", text, ["queues"], parts=PARTS)
    assert options.number("queues", 1, 1, 9) == 2
    assert [(kind, part.main, part.keys) for kind, part in options.parts] == [
        ("disk", "a,b", ["lun"]),
        ("cdrom", "c", ["lun"]),
        ("disk", "d", ["readonly"]),
    ]
    assert options.parts[2][1].flag("readonly")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",lun=1,disk=a", "lun before what it is of: begin with disk or cdrom"),
        (",cdrom=a,readonly=on", "readonly of a cdrom, which takes lun"),
        (",disk=a,lun=1,lun=2", "lun twice"),
        (",disk=a,size=1", "does not know 'size=1'"),
    ],
)
def test_a_key_that_is_not_the_parts_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DeviceOptions("--scsi", text, ["queues"], parts=PARTS)
