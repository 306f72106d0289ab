"""What alembic runs for each command; the connection, with its transaction, comes from `router.store.migrate`."""

from alembic import context

from router.store.tables import metadata

# SQLite cannot alter most of a table: batches make it anew and copy.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
