-- Files: what clients bring, what jobs make, and what is to be removed.
--
-- The bytes are in the object store; a row is written only after its bytes are durable there. Whatever stops being
-- named by a row is written into `removals` in the same transaction, and removed from the object store later.

-- Never in use before this version.
delete from uploads;
alter table uploads drop constraint complete_has_a_size;
alter table uploads drop column object_key, drop column multipart_id;
-- the objects that together are the file, in order; null until complete
alter table uploads add column segment_keys text[];
-- their lengths
alter table uploads add column segment_bytes bigint[];
-- strong validator of the whole file, without quotes
alter table uploads add column etag text;
-- how long the complete file is kept; null: until told otherwise
alter table uploads add column keep_seconds float8 check (keep_seconds > 0);
-- the request that carried the file inside itself, as a data URI; the file goes with it
alter table uploads add column job_id uuid;
alter table uploads add constraint complete_has_content check (
    (state = 'complete') = (bytes is not null and completed_at is not null and etag is not null
        and segment_keys is not null and segment_bytes is not null));
create index uploads_of_jobs on uploads (job_id) where job_id is not null;

create table upload_parts (
    upload_id uuid not null references uploads on delete cascade,
    -- from 1, as the client counts
    number integer not null check (number between 1 and 10000),
    -- the object of the write that was recorded last
    object_key text not null,
    bytes bigint not null check (bytes >= 0),
    -- made from the bytes, without quotes
    etag text not null,
    primary key (upload_id, number)
);

create table outputs (
    -- kiln's own address of the file, as it stands in the job's outcome
    address text primary key,
    -- the job that made it
    job_id uuid not null,
    -- the key that submitted the job
    key_id text,
    content_type text,
    bytes bigint check (bytes >= 0),
    -- who may read it, as the client asked (X-Fal-Object-Lifecycle-Preference: initial_acl)
    acl json,
    created_at timestamptz not null,
    -- when it goes; null: kept
    expires_at timestamptz
);
create index outputs_of_jobs on outputs (job_id);
create index outputs_expiring on outputs (expires_at) where expires_at is not null;

create table removals (
    id bigint generated always as identity primary key,
    -- what is to go: one object …
    object_key text,
    -- … or one file of a job, by its address …
    address text,
    -- … or everything of an upload …
    upload_id uuid,
    -- … or everything of a job
    job_id uuid,
    -- when to try; moved on while somebody tries
    due_at timestamptz not null,
    constraint names_one_thing check (num_nonnulls(object_key, address, upload_id, job_id) = 1)
);
create index removals_due on removals (due_at);

-- where files are served, as the client that submitted the request reaches it; webhooks and results are built with it
alter table jobs add column files_url text;

-- who is to be told: host and port of the address. Deliveries are shared out by it
alter table webhook_deliveries add column receiver text not null
    generated always as (coalesce(substring(url from '^[^:]*://(?:[^/?#@]*@)?([^/?#]*)'), '')) stored;
drop index webhook_deliveries_due;
create index webhook_deliveries_due on webhook_deliveries (receiver, due_at, id) where state = 'pending';

create function uploads_deleted() returns trigger language plpgsql as $$
begin
    insert into removals (upload_id, due_at) values (old.id, kiln_now());
    return null;
end $$;
create trigger uploads_deleted after delete on uploads for each row execute function uploads_deleted();

-- A request that is removed takes its files with it. One that was never started has none.
create function jobs_deleted() returns trigger language plpgsql as $$
begin
    delete from uploads where job_id = old.id;
    delete from outputs where job_id = old.id;
    if old.attempt > 0 then
        insert into removals (job_id, due_at) values (old.id, kiln_now());
    end if;
    return null;
end $$;
create trigger jobs_deleted after delete on jobs for each row execute function jobs_deleted();

-- Forgetting a request's input forgets the files inside it.
create function jobs_forgotten() returns trigger language plpgsql as $$
begin
    delete from uploads where job_id = new.id;
    return null;
end $$;
create trigger jobs_forgotten after update on jobs for each row
    when (old.deleted_at is null and new.deleted_at is not null) execute function jobs_forgotten();
