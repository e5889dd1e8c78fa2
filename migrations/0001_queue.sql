-- The queue: jobs, their log lines, and the webhooks that follow them.
--
-- Times are the database's own, so several machines agree about leases and deadlines. Every statement asks
-- kiln_now(); tests fix it with the connection option `-c kiln.now=<timestamp>`.
create function kiln_now() returns timestamptz
    language sql stable parallel safe
as $$ select coalesce(nullif(current_setting('kiln.now', true), '')::timestamptz, now()) $$;

-- When the database came up: until a lease's time after that, no worker could have renewed, so none is held to be
-- dead. Under a fixed clock it has always been up.
create function kiln_started() returns timestamptz
    language sql stable parallel safe
as $$ select case when nullif(current_setting('kiln.now', true), '') is null
              then pg_postmaster_start_time() else '-infinity'::timestamptz end $$;

create table jobs (
    -- the request id that clients see; one for all attempts
    id uuid primary key,
    -- order of arrival, over all queues
    seq bigint generated always as identity,
    -- the endpoint path without owner and alias ("i2v", "ic-lora/av2av"); each path is a queue of its own
    path text not null,
    -- 0 normal, 1 low: low runs only when no normal request of the same queue waits
    priority smallint not null check (priority in (0, 1)),
    -- see the state machine in crates/store/src/leases.rs
    state text not null check (state in ('queued', 'running', 'completed', 'failed', 'cancelled')),
    -- the API key that submitted the request; null when the server runs without keys
    key_id text,

    -- the request's JSON as it was sent; null when absent, not to be kept, or deleted.
    -- json, not jsonb: the text stays as it came, key order and odd numbers included
    input json,
    -- the parsed request (spec::TrainSpec); null when the job was born failed, not to be kept, or deleted
    spec json,
    -- what spec::plan made of the request and the archive, for the record
    plan json,
    -- where the newest saved training state lies, whatever attempt wrote it
    state_pointer json,

    -- address to notify once the job is final
    webhook_url text,
    -- false: input, spec and result go as soon as they are not needed (X-Fal-Store-IO: 0)
    store_io boolean not null default true,
    -- lifetime and access wishes for output files (X-Fal-Object-Lifecycle-Preference)
    lifecycle json,
    -- the client's own key=value list (X-Fal-Tags)
    tags text,
    -- routing wish of the client (X-Fal-Runner-Hint); recorded, not obeyed
    runner_hint text,
    -- waiting past this moment ends the job with request_timeout; one fixed moment over all attempts
    start_deadline timestamptz,

    -- how often the job has been claimed; only ever grows, part of every write and object key of a worker
    attempt integer not null default 0 check (attempt >= 0),
    -- attempts that ended in a worker's death or in a fault worth another attempt
    deaths integer not null default 0,
    -- deaths the job is allowed, the last one included; 1 means no automatic retries
    max_attempts integer not null check (max_attempts >= 1),
    -- name of the worker that holds or last held the job
    worker text,
    -- secret of the current lease; null unless running
    lease_token uuid,
    -- when the current lease runs out unless renewed; null unless running
    lease_expires_at timestamptz,
    -- token of the lease that ended the job, so that repeating a finish is recognised
    final_token uuid,
    -- when somebody asked to stop the job
    cancel_requested_at timestamptz,
    -- the failure that the cancelled job will carry (spec::Failure)
    cancel_reason json,

    -- what the worker is doing (spec::Phase); null before the first report of an attempt
    phase text,
    -- units of the phase (clips, steps, files) that are done
    phase_done bigint not null default 0,
    -- units of the phase in all; 0 when not known yet
    phase_total bigint not null default 0,
    -- number of log lines so far, over all attempts; the next line is numbered one higher
    last_seq bigint not null default 0,
    -- the latest batch of log lines, so that repeating an append is recognised
    last_append uuid,

    -- HTTP status of the result
    http_status smallint check (http_status between 200 and 599),
    -- result of a completed job (spec::Outcome)
    outcome json,
    -- why the job failed or was cancelled (spec::Failure)
    failure json,
    -- the `error` line of a failed job's status
    error text,
    -- the `error_type` of a failed job's status, when the failure is of the request and not of the model
    error_type text,

    -- when the request was accepted
    created_at timestamptz not null,
    -- when the current or last attempt was claimed; null while waiting
    started_at timestamptz,
    -- when the job became final
    finished_at timestamptz,
    -- when input and result were deleted on request or by store_io = false; the job then answers 404
    deleted_at timestamptz,

    constraint running_is_leased check (
        (state = 'running') = (lease_token is not null)
        and (lease_token is null) = (lease_expires_at is null)
        and (state <> 'running' or (attempt > 0 and started_at is not null and worker is not null))),
    constraint waiting_has_not_started check (state <> 'queued' or started_at is null),
    constraint final_has_an_end check (
        (state in ('completed', 'failed', 'cancelled')) = (finished_at is not null)
        and (finished_at is null) = (http_status is null)),
    constraint failed_says_why check ((state in ('failed', 'cancelled')) = (error is not null)),
    constraint runnable_has_a_spec check (state not in ('queued', 'running') or spec is not null),
    constraint final_has_a_result check (
        finished_at is null or deleted_at is not null
        or (outcome is not null) = (state = 'completed') and (failure is not null) = (state <> 'completed')),
    constraint only_final_is_deleted check (deleted_at is null or finished_at is not null),
    constraint deaths_within_attempts check (deaths between 0 and attempt)
) with (
    -- room for lease renewals and progress on the same page, without touching an index
    fillfactor = 85,
    -- a queue's dead rows sit in front of the next claim: clear them long before a fifth of the history has changed
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000
);

-- the waiting rows in the order in which they run: claims, positions, queue limits
create index jobs_waiting on jobs (path, priority, seq) where state = 'queued';
-- the sweeper's walks. lease_expires_at stays out, so that renewals touch no index
create index jobs_running on jobs (seq) where state = 'running';
create index jobs_start_deadline on jobs (start_deadline) where state = 'queued' and start_deadline is not null;
create index jobs_unstored on jobs (finished_at) where not store_io and finished_at is not null and deleted_at is null;
-- request history, newest first
create index jobs_created on jobs (created_at, id);
-- retention
create index jobs_finished on jobs (finished_at) where finished_at is not null;

create table job_events (
    -- whose line it is
    job_id uuid not null references jobs on delete cascade,
    -- 1, 2, 3 … per job, over all attempts
    seq bigint not null,
    -- the attempt that wrote the line
    attempt integer not null,
    -- when, by the worker's clock
    at timestamptz not null,
    -- spec::Level
    level text not null,
    -- the line as the user sees it
    message text not null,
    -- numbers behind the line (step, loss), for the dashboard
    data json,
    primary key (job_id, seq)
);

create table webhook_deliveries (
    -- order of the deliveries
    id bigint generated always as identity primary key,
    -- one delivery for each job that has a webhook, written in the transaction that made the job final
    job_id uuid not null unique references jobs on delete cascade,
    -- where to
    url text not null,
    -- pending until the receiver took it or we gave up
    state text not null default 'pending' check (state in ('pending', 'delivered', 'gave_up')),
    -- tries begun so far
    tries integer not null default 0,
    -- when the next try is due; while a try runs, when it is taken for lost
    due_at timestamptz not null,
    -- marks the sender at work; its report counts only under this value
    lock uuid,
    -- what the receiver answered last, if it answered
    http_status smallint,
    -- what went wrong last
    error text,
    -- when the job became final
    created_at timestamptz not null,
    -- when the state left pending
    finished_at timestamptz,
    constraint finished_is_not_pending check ((state = 'pending') = (finished_at is null))
);
create index webhook_deliveries_due on webhook_deliveries (due_at) where state = 'pending';

-- What must hold whoever writes: a final job stays as it is, attempts only grow, and the delivery row of a
-- webhook appears in the very transaction that makes its job final.
--
-- Channels: kiln_work (path: something to claim), kiln_queue (path: the queue moved), kiln_job (id: the job
-- changed), kiln_webhook (a delivery is due), kiln_key (id: a key was revoked).
create function jobs_inserted() returns trigger language plpgsql as $$
begin
    insert into webhook_deliveries (job_id, url, due_at, created_at)
        select id, webhook_url, finished_at, finished_at from added
        where finished_at is not null and webhook_url is not null;
    if found then
        perform pg_notify('kiln_webhook', '');
    end if;
    perform pg_notify('kiln_work', path)
        from (select distinct path from added where state = 'queued') as queues;
    return null;
end $$;
create trigger jobs_inserted after insert on jobs
    referencing new table as added for each statement execute function jobs_inserted();

create function jobs_guard() returns trigger language plpgsql as $$
begin
    raise exception 'job %: % (attempt %) may not become % (attempt %)',
        old.id, old.state, old.attempt, new.state, new.attempt using errcode = 'check_violation';
end $$;
create trigger jobs_guard before update on jobs for each row
    when (old.finished_at is not null and (new.state <> old.state or new.finished_at is distinct from old.finished_at)
          or new.attempt < old.attempt or new.seq <> old.seq or new.id <> old.id)
    execute function jobs_guard();

create function jobs_changed() returns trigger language plpgsql as $$
begin
    if new.finished_at is not null and old.finished_at is null and new.webhook_url is not null then
        insert into webhook_deliveries (job_id, url, due_at, created_at)
            values (new.id, new.webhook_url, new.finished_at, new.finished_at);
        perform pg_notify('kiln_webhook', '');
    end if;
    if new.state = 'queued' and old.state <> 'queued' then
        perform pg_notify('kiln_work', new.path);
    end if;
    if (new.state = 'queued') <> (old.state = 'queued') then
        perform pg_notify('kiln_queue', new.path);
    end if;
    perform pg_notify('kiln_job', new.id::text);
    return null;
end $$;
create trigger jobs_changed after update on jobs for each row
    when (old.state <> new.state or old.last_seq <> new.last_seq or old.attempt <> new.attempt
          or old.phase is distinct from new.phase or old.phase_done <> new.phase_done
          or old.cancel_requested_at is distinct from new.cancel_requested_at
          or old.deleted_at is distinct from new.deleted_at)
    execute function jobs_changed();
