"""One URL, read alike by the package's own connections and by Celery."""

from __future__ import annotations

import pytest

from helios_batch.errors import QueueUsageError
from helios_batch.queue.app import make_app
from helios_batch.queue.connection import broker_address
from helios_batch.queue.settings import QueueSettings


@pytest.mark.parametrize(
    ("url", "broker", "ssl", "socket", "shown"),
    [
        ("redis://h", "redis://h/0", {}, "", "redis://h"),
        ("redis://u:p%40@h:7/3", "redis://u:p%40@h:7/3", {}, "", "redis://h:7/3"),
        ("redis://:p@[::1]:7?db=2", "redis://:p@[::1]:7/2", {}, "", "redis://[::1]:7"),
        ("rediss://h:7", "redis://h:7/0", {"ssl_cert_reqs": "required"}, "", "rediss://h:7"),
        (
            "rediss://u:p@h?ssl_ca_certs=/ca.pem&ssl_cert_reqs=none",
            "redis://u:p@h/0",
            {"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "none"},
            *("", "rediss://h"),
        ),
        ("unix:///run/R.sock", "redis://@localhost/0", {}, "/run/R.sock", "unix:/run/R.sock"),
        ("unix://u:p@/R.sock?db=4", "redis://u:p@localhost/4", {}, "/R.sock", "unix:/R.sock"),
    ],
)
def test_what_a_url_means(
    url: str, broker: str, ssl: dict[str, object], socket: str, shown: str
) -> None:
    """Database, certificates and socket reach Celery; what is shown has no secret and no query."""
    settings = QueueSettings.from_env(url)
    assert broker_address(settings) == (broker, ssl, socket)
    assert settings.shown_url == shown


def test_tls_is_never_left_out() -> None:
    """kombu takes rediss:// without a query for "no certificate needed", or for no TLS at all."""
    with make_app(QueueSettings("rediss://h:7")).connection_for_write() as connection:
        assert connection.ssl == {"ssl_cert_reqs": "required"}


@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://:SECRET@h:port",
            "redis://:SECRET@h?what=1",
            "redis://:SECRET@[::1",
            "redis://h:-1",
        ),
        # a password that is not quoted ends the address where it has a sign of its own
        *("redis://:SECRET#x@h:1/0", "redis://:12/SECRET@h:1/0", "redis://u:12?SECRET@h:1/0"),
        *("rediss://:SECRET@h?ssl_min_version=x", "redis://:SECRET@h?ssl_ca_certs=/x"),
        *("amqp://:SECRET@h", "SECRET", "://SECRET"),
    ],
)
def test_urls_that_are_none(url: str) -> None:
    """They are refused in plain words, and nothing of them is repeated."""
    with pytest.raises(QueueUsageError) as caught:
        QueueSettings.from_env(url)
    assert "SECRET" not in str(caught.value)
