"""All registries answer alike, and the SQL one outlives its process."""

from pathlib import Path

import numpy as np
import psycopg
import pytest

from samespace.cloud.gallery.evidence import measured_record, registered_model
from samespace.cloud.gallery.postgres import Database
from samespace.cloud.gallery.registries.postgres import PostgresRegistry
from samespace.cloud.gallery.registry import SERVING, Challenge, RegisteredArtifact, RegisteredRecord
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk.errors import ConfigError, GalleryError, GalleryUnavailableError


def test_nothing_is_there_before_it_is_put(gallery_stores, gallery_world) -> None:
    registry, model_id = gallery_stores.registry, gallery_world.records["cloud"].model_id
    assert registry.spaces() == ()
    assert registry.space(gallery_world.space.space_id) is None
    assert registry.model(model_id) is None
    assert registry.models(gallery_world.space.space_id) == ()
    assert registry.record(model_id, model_id) is None
    assert registry.alias(gallery_world.space.space_id, SERVING) is None
    assert registry.challenges(model_id) == ()


def test_entries_come_back_as_they_were_put_and_may_be_put_again(gallery_stores, gallery_world) -> None:
    registry, space = gallery_stores.registry, gallery_world.space
    cloud, phone = gallery_world.evidence("cloud"), gallery_world.evidence("phone")
    record = RegisteredRecord(record=measured_record(phone), signer=phone.signer)
    models = [registered_model(evidence.manifest, evidence.signer) for evidence in (cloud, phone)]
    challenges = tuple(Challenge(f"{i}", bytes([i, 0, 255]), row) for i, row in enumerate(cloud.own[:9]))
    for _ in range(2):
        registry.put_space(space)
        for model in models:
            registry.put_model(model)
        registry.put_record(record)
        registry.set_alias(space.space_id, SERVING, models[0].model_id)
        registry.put_challenges(models[0].model_id, challenges)
    assert registry.spaces() == (space,)
    assert registry.models(space.space_id) == tuple(sorted(models, key=lambda model: model.model_id))
    assert registry.record(record.record.query_id, record.record.gallery_model_id) == record
    assert registry.alias(space.space_id, SERVING) == models[0].model_id
    found = registry.challenges(models[0].model_id)
    assert [(c.name, c.image) for c in found] == [(c.name, c.image) for c in challenges]
    np.testing.assert_array_equal([c.embedding for c in found], [c.embedding for c in challenges])
    registry.ping()


def test_another_export_of_a_model_adds_its_artifacts(gallery_stores, gallery_world) -> None:
    registry, evidence = gallery_stores.registry, gallery_world.evidence("cloud")
    first = registered_model(evidence.manifest, "one")
    other = RegisteredArtifact(artifact_id="f" * 64, format="tflite", precision="int8")
    registry.put_space(gallery_world.space)
    registry.put_model(first)
    registry.put_model(first.model_copy(update={"artifacts": (other,), "signer": "two"}))
    kept = registry.model(first.model_id)
    assert kept is not None
    assert set(kept.artifacts) == {*first.artifacts, other}
    assert kept.signer == "two"


def test_the_newest_record_of_a_pair_counts(gallery_stores, gallery_world) -> None:
    registry = gallery_stores.registry
    record = measured_record(gallery_world.evidence("phone"))
    dates = ["2026-03-01T00:00:00+00:00", "2026-05-01T00:00:00+00:00", "2026-04-01T00:00:00+00:00"]
    for date, verdict in zip(dates, ("pass", "fail", "pass"), strict=True):
        entry = record.model_copy(update={"measured_at": date, "verdict": verdict})
        registry.put_record(RegisteredRecord(record=entry, signer=None))
    newest = registry.record(record.query_id, record.gallery_model_id)
    assert (newest.record.measured_at, newest.record.verdict) == (dates[1], "fail")
    again = record.model_copy(update={"measured_at": dates[1], "verdict": "pass"})
    registry.put_record(RegisteredRecord(record=again, signer=None))
    assert registry.record(record.query_id, record.gallery_model_id).record.verdict == "pass"


@pytest.mark.database
def test_a_database_keeps_everything_for_the_next_process(postgres_url: str, gallery_world) -> None:
    first = PostgresRegistry(Database(postgres_url))
    first.put_space(gallery_world.space)
    first.close()
    second = PostgresRegistry(Database(postgres_url))
    assert second.spaces() == (gallery_world.space,)
    second.close()


@pytest.mark.database
def test_a_newer_database_is_refused(postgres_url: str) -> None:
    Database(postgres_url).close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("UPDATE samespace.meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(GalleryError, match=r"version 99.*install a newer samespace"):
        Database(postgres_url)


@pytest.mark.database
def test_a_failed_transaction_changes_nothing_and_its_connection_is_used_again(postgres_url: str) -> None:
    database = Database(postgres_url, connections=1)

    def half() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO meta VALUES ('half', 'done')")
            connection.execute("INSERT INTO spaces VALUES ('no record')")

    with pytest.raises(GalleryError, match="spaces"):
        half()
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM meta WHERE key = 'half'").fetchone() == (0,)
    database.close()


@pytest.mark.database
def test_lost_connections_are_reported_and_replaced(postgres_url: str) -> None:
    database = Database(postgres_url, connections=1)
    with database.transaction() as connection:
        pid = connection.info.backend_pid
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with pytest.raises(GalleryUnavailableError, match="no answer"), database.transaction() as connection:
        connection.execute("SELECT 1")
    with database.transaction() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    database.close()


def test_nobody_at_the_database_url_is_said_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(GalleryUnavailableError, match=r"no answer.*start that PostgreSQL") as caught:
        Database(f"postgresql://user:s3cret@/gallery?host={tmp_path}")
    assert "s3cret" not in str(caught.value)


def test_a_url_that_is_none_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match="not a PostgreSQL URL") as caught:
        Database("mysql://user:s3cret@host/db")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"memory": True, "database": "postgresql://x"}, {"data": Path("x"), "memory": True}])
def test_exactly_one_place_must_be_named(options: dict) -> None:
    with pytest.raises(ConfigError, match="one of --data DIR, --database URL and --memory"), open_stores(**options):
        pass
