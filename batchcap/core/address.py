"""Owns what an address of a file is, and how one is kept where paths are kept.

A source has a path. That of an address is the address without its second slash, `s3:/bucket/a.tar` for
`s3://bucket/a.tar`: what pathlib makes of it, so that parents and names are right. Paths of this machine are absolute
wherever sources have them, so the two are never mixed up.
"""

import re
from pathlib import Path, PurePath
from urllib.parse import urlsplit

PROTOCOLS = ("s3", "gs", "hf", "https", "http")
_KEPT = re.compile(rf"({'|'.join(PROTOCOLS)}):/{{1,2}}(?=[^/])")
_WRITTEN = re.compile(rf"(?i)({'|'.join(PROTOCOLS)})://(?=[^/])")
_ALTERED = re.compile(r"//|/\.{1,2}(/|$)")
_WEB = ("https://", "http://")


def is_remote(name: str) -> bool:
    """Whether a person's or a manifest's text is an address that can be fetched."""
    return _WRITTEN.match(name) is not None


def address_of(path: str | PurePath) -> str | None:
    """The address that a path stands for, or that is one; None for a path of this machine."""
    text = str(path)
    found = _KEPT.match(text)
    return None if found is None else f"{found[1]}://{text[found.end() :]}"


def canonical(address: str) -> str:
    """An address with its protocol in lower case, and without a slash at the end; in a query none are doubled."""
    protocol, _mark, rest = address.partition("://")
    where, mark, query = rest.partition("?") if is_web(address) else (rest, "", "")
    return f"{protocol.lower()}://{where.rstrip('/')}{mark}{query.replace('/', '%2F')}"


def path_of(address: str) -> Path | None:
    """The path that stands for a canonical address; None where a path can't hold it (`a//b`, `a/../b`)."""
    protocol, _mark, rest = address.partition("://")
    return None if _ALTERED.search(rest) or rest.startswith(".") else Path(f"{protocol}:/{rest}")


def is_web(address: str) -> bool:
    """Whether it is of a web server, which has files and no folders."""
    return address[:8].lower().startswith(_WEB)


def without_query(address: str) -> str:
    """An address as messages and names of rows have it: what a web address has after its `?` may be a secret."""
    return address.partition("?")[0] if is_web(address) else address


def file_name(address: str) -> str:
    """The last name in an address."""
    return without_query(address).rpartition("/")[2]


def host_of(address: str) -> str:
    """The server or bucket of an address."""
    return urlsplit(without_query(address)).netloc.rpartition("@")[2]
