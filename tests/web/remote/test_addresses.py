"""Which addresses may be asked for a picture, by how they are written and where they lead."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.errors import PictureNotFetched
from web.remote.addresses import checked_url, is_public, literal

PORTS = (80, 443)

INSIDE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",  # Alibaba Cloud's metadata
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's wire server
    "169.254.169.254",  # metadata of AWS, Azure, Google and others
    "169.254.170.2",  # credentials of AWS's containers
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",  # Oracle Cloud's metadata
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",  # NAT64
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::10.0.0.1",
    "100::1",
    "2001::1",  # Teredo
    "2001:0:7f00:1::",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:a9fe:a9fe::1",
    "2002:808:808::1",
    "2606:4700::5efe:10.0.0.1",  # ISATAP
    "2606:4700::200:5efe:10.0.0.1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # AWS's metadata over IPv6
    "fd20:ce::254",  # Google's
    "fe80::1",
    "fe80::1%lo",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "192.0.1.1", "223.0.0.1"]
PUBLIC += ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450::1", "2400:cb00::1"]


@pytest.mark.parametrize("address", INSIDE)
def test_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses())
def test_what_python_knows_to_be_special_is_never_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    assert not (special and is_public(address))


@given(st.ip_addresses(v=4))
def test_no_ipv6_that_carries_an_ipv4_address_is_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for carried in (
        number,
        0xFFFF << 32 | number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x64FF9B0001 << 80 | number,
        0x2002 << 112 | number << 80 | 1,
        0x20010000 << 96 | number,
        0x260647000000000000005EFE << 32 | number,
    ):
        assert not is_public(ipaddress.IPv6Address(carried))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "https://example.org/a.png?x=1#y",
        "HTTPS://EXAMPLE.ORG/a.png",
        "https://example.org:443/",
        "http://example.org.:80/",
        "https://bücher.example/ä.png",
        "http://8.8.8.8/a.png",
        "http://[2606:4700::1111]/a.png",
        "https://a_b.example.org/../../a.png",
    ],
)
def test_urls_that_may_be_asked(url: str) -> None:
    assert checked_url(url, (), PORTS).scheme in ("http", "https")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file://localhost/etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "etc/passwd",
        "C:\\secret.png",
        "\\\\server\\share\\a.png",
        "//example.org/a.png",
        "ftp://example.org/a.png",
        "gopher://example.org/a.png",
        "dict://example.org/a.png",
        "unix:///run/docker.sock",
        "jar:http://example.org!/a.png",
        "javascript:alert(1)",
        "blob:https://example.org/x",
        "http:example.org",
        "http:///a.png",
        "http://",
        "https://?",
        "",
        "http",
    ],
)
def test_other_schemes_and_no_host_are_refused(url: str) -> None:
    with pytest.raises(PictureNotFetched):
        checked_url(url, (), PORTS)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",  # 127.0.0.1 in decimal
        "0x7f000001",  # hexadecimal
        "0X7F000001",
        "017700000001",  # octal
        "0177.0.0.1",
        "0177.0.0.01",
        "0x7f.0x0.0x0.0x1",
        "0x7f.1",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "0",
        "0x",
        "127.0.0.01",
        "127.0.0.001",
        "127.0.0.0x1",
        "2852039166",  # 169.254.169.254
        "0xa9fea9fe",
        "1.2.3.4.5",
        "256.1.1.1",
        "4294967297",
        "1２7.0.0.1",  # a full-width digit
        "127。0。0。1",  # ideographic full stops
        "①②⑦.⓪.⓪.①",
        "127%2e0%2e0%2e1",
        "%31%32%37.0.0.1",
        "localhost%00.example.org",
        "a..b",
        "-a.example",
        "a-.example",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
        "[::1",
        "[127.0.0.1]",
        "[::ffff:0x7f.1]",
        "[v1.fe80]",
        "exa mple.org",
        "exam\tple.org",
        "example.org\\@127.0.0.1",
        "example.org\r\nX: y",
    ],
)
def test_hosts_in_other_spellings_are_refused(host: str) -> None:
    try:
        url = checked_url(f"http://{host}/a.png", (), PORTS)
    except PictureNotFetched:
        return
    address = literal(url.raw_host.decode())  # a spelling that was made plain is judged by where it leads
    assert address is not None
    assert not is_public(address)


@pytest.mark.parametrize(
    "authority",
    [
        "user@example.org",
        "user:pass@example.org",
        "@example.org",
        ":@example.org",
        "example.org@127.0.0.1",
        "a@b@c.org",
    ],
)
def test_user_names_are_refused(authority: str) -> None:
    with pytest.raises(PictureNotFetched):
        checked_url(f"http://{authority}/a.png", (), PORTS)


@pytest.mark.parametrize("port", ["22", "25", "0", "8000", "6379", "65536", "-1", "x", "080x"])
def test_other_ports_are_refused(port: str) -> None:
    with pytest.raises(PictureNotFetched):
        checked_url(f"http://example.org:{port}/a.png", (), PORTS)


def test_long_addresses_are_refused() -> None:
    with pytest.raises(PictureNotFetched, match="2048"):
        checked_url("https://example.org/" + "a" * 2048, (), PORTS)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("example.org", True),
        ("EXAMPLE.org", True),
        ("example.org.", True),
        ("www.example.org", False),
        ("a.cdn.example", True),
        ("a.b.cdn.example", True),
        ("cdn.example", False),
        ("evilcdn.example", False),
        ("example.org.evil.com", False),
        ("evil-example.org", False),
        ("8.8.8.8", False),
        ("1.1.1.1", True),
    ],
)
def test_domain_list(host: str, allowed: bool) -> None:
    domains = ("example.org", "*.cdn.example", "1.1.1.1")
    if allowed:
        checked_url(f"https://{host}/a.png", domains, PORTS)
        return
    with pytest.raises(PictureNotFetched, match="not allowed"):
        checked_url(f"https://{host}/a.png", domains, PORTS)
