-- API keys, the installation's own keys and secrets, and files that clients bring.

create table api_keys (
    -- the part of "id:secret" before the colon
    id text primary key,
    -- what the operator calls it
    name text not null,
    -- SHA-256 of the secret, which itself is 256 random bits and kept nowhere
    secret_hash bytea not null check (octet_length(secret_hash) = 32),
    -- when it was made
    created_at timestamptz not null,
    -- roughly: written at most once a minute by each server
    last_used_at timestamptz,
    -- from this moment on the key opens nothing
    revoked_at timestamptz
);

create function api_keys_revoked() returns trigger language plpgsql as $$
begin
    perform pg_notify('kiln_key', new.id);
    return null;
end $$;
create trigger api_keys_revoked after update on api_keys for each row
    when (old.revoked_at is distinct from new.revoked_at) execute function api_keys_revoked();

create table signing_keys (
    -- the key's name in the JWKS document
    kid text primary key,
    -- Ed25519 seed; whoever reads it can sign webhooks in this installation's name
    seed bytea not null check (octet_length(seed) = 32),
    -- when it was made; the newest key signs
    created_at timestamptz not null
);

create table secrets (
    -- what it is for ("tokens")
    name text primary key,
    -- 32 random bytes
    value bytea not null check (octet_length(value) = 32),
    -- when it was made
    created_at timestamptz not null
);

create table uploads (
    -- part of the upload's address
    id uuid primary key,
    -- where the object store keeps the bytes
    object_key text not null unique,
    -- the client's name for the file, sanitised
    file_name text not null,
    -- MIME type that the file is served with
    content_type text not null,
    -- open until the last byte is stored
    state text not null default 'open' check (state in ('open', 'complete')),
    -- SHA-256 of the secret in the upload address, which the file's own address does not reveal
    secret_hash bytea not null check (octet_length(secret_hash) = 32),
    -- the object store's name for a multipart upload in progress
    multipart_id text,
    -- size once complete
    bytes bigint check (bytes >= 0),
    -- the API key that began it
    key_id text,
    -- who may read it, as the client asked (X-Fal-Object-Lifecycle: initial_acl)
    acl json,
    -- when it began
    created_at timestamptz not null,
    -- when the last byte was stored
    completed_at timestamptz,
    -- an open upload is given up, a complete file is deleted, at this moment; null: kept
    expires_at timestamptz,
    constraint complete_has_a_size check ((state = 'complete') = (bytes is not null and completed_at is not null))
);
create index uploads_expiring on uploads (expires_at) where expires_at is not null;
