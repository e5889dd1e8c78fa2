//! The outbox: webhooks to deliver. Rows appear with the end of their job (a trigger of the `jobs` table).

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    Answer, Error, Store,
    jobs::{clean, read_answer},
};

/// A webhook that is due, leased to whoever asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Number of the delivery.
    pub id: i64,
    /// The request.
    pub job: Uuid,
    /// Where to.
    pub url: String,
    /// Which try this is, from 1.
    pub tries: u32,
    /// When the job became final.
    pub created_at: DateTime<Utc>,
    /// Host and port of the address.
    pub receiver: String,
    /// The key that submitted the job.
    pub key_id: Option<String>,
    /// Where the client reaches the files of the result.
    pub files_url: Option<String>,
    /// What to report.
    pub answer: Answer,
    lock: Uuid,
}

#[derive(sqlx::FromRow)]
struct DueRow {
    id: i64,
    job_id: Uuid,
    url: String,
    tries: i32,
    created_at: DateTime<Utc>,
    receiver: String,
    key_id: Option<String>,
    files_url: Option<String>,
    outcome: Option<String>,
    failure: Option<String>,
}

impl Store {
    /// Takes due deliveries: at most `limit` in all and `each` of one receiver, none of the receivers in `busy`. Nobody
    /// else gets them for the time of `hold`; a sender that dies leaves them to the next one after that.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn due_webhooks(
        &self,
        limit: u32,
        each: u32,
        busy: &[String],
        hold: Duration,
    ) -> Result<Vec<Delivery>, Error> {
        // Walks the index from receiver to receiver, so that a long backlog of one costs the others nothing.
        const SQL: &str = "/* due_webhooks */
            with recursive receivers as (
                (select receiver from webhook_deliveries where state = 'pending' order by receiver limit 1)
                union all
                select (
                    select receiver from webhook_deliveries
                    where state = 'pending' and receiver > receivers.receiver order by receiver limit 1
                ) from receivers where receivers.receiver is not null
            ), due as materialized (
                select next.id as due_id
                from receivers cross join lateral (
                    select id from webhook_deliveries
                    where state = 'pending' and receiver = receivers.receiver and due_at <= kiln_now()
                    order by due_at, id limit $5 for update skip locked
                ) as next
                where receivers.receiver <> all($4)
                limit $1
            )
            update webhook_deliveries as hook
            set tries = tries + 1, due_at = kiln_now() + make_interval(secs => $2), lock = $3
            from due, jobs
            where hook.id = due_id and jobs.id = hook.job_id
            returning hook.id, hook.job_id, hook.url, hook.tries, hook.created_at, hook.receiver, jobs.key_id,
                jobs.files_url, jobs.outcome::text as outcome, jobs.failure::text as failure";
        let lock = Uuid::new_v4();
        let seconds = hold.as_secs_f64();
        let take = || {
            sqlx::query_as(SQL)
                .bind(i64::from(limit))
                .bind(seconds)
                .bind(lock)
                .bind(busy)
                .bind(i64::from(each))
                .fetch_all(self.pool())
        };
        let mut rows: Vec<DueRow> = self.persist(take).await?;
        rows.sort_by_key(|row| row.id);
        rows.into_iter()
            .map(|row| {
                Ok(Delivery {
                    id: row.id,
                    job: row.job_id,
                    url: row.url,
                    tries: row.tries.unsigned_abs(),
                    created_at: row.created_at,
                    receiver: row.receiver,
                    key_id: row.key_id,
                    files_url: row.files_url,
                    answer: read_answer(row.job_id, row.outcome.as_deref(), row.failure.as_deref())?,
                    lock,
                })
            })
            .collect()
    }

    /// Records that the receiver took it.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] when the hold ran out and somebody else tries now.
    pub async fn webhook_delivered(&self, delivery: &Delivery, http_status: u16) -> Result<(), Error> {
        self.webhook_end(delivery, "delivered", Some(http_status), None).await
    }

    /// Records that it will not be tried again.
    ///
    /// # Errors
    ///
    /// As [`Store::webhook_delivered`].
    pub async fn webhook_gave_up(
        &self,
        delivery: &Delivery,
        http_status: Option<u16>,
        error: &str,
    ) -> Result<(), Error> {
        self.webhook_end(delivery, "gave_up", http_status, Some(error)).await
    }

    /// Records a failed try and when the next one is due.
    ///
    /// # Errors
    ///
    /// As [`Store::webhook_delivered`].
    pub async fn webhook_retry(
        &self,
        delivery: &Delivery,
        after: Duration,
        http_status: Option<u16>,
        error: &str,
    ) -> Result<(), Error> {
        const SQL: &str = "/* webhook_retry */
            update webhook_deliveries set due_at = kiln_now() + make_interval(secs => $4), http_status = $5, error = $6
            where id = $1 and lock = $2 and tries = $3 and state = 'pending'";
        let error = clean(error);
        let write = || {
            sqlx::query(SQL)
                .bind(delivery.id)
                .bind(delivery.lock)
                .bind(i32::try_from(delivery.tries).unwrap_or(i32::MAX))
                .bind(after.as_secs_f64())
                .bind(http_status.map(u16::cast_signed))
                .bind(&error)
                .execute(self.pool())
        };
        if self.persist(write).await?.rows_affected() > 0 { Ok(()) } else { Err(Error::LeaseLost) }
    }

    async fn webhook_end(
        &self,
        delivery: &Delivery,
        state: &str,
        http_status: Option<u16>,
        error: Option<&str>,
    ) -> Result<(), Error> {
        // Repeating it is fine, so the state may be what it is to become.
        const SQL: &str = "/* webhook_end */
            update webhook_deliveries set state = $4, finished_at = kiln_now(), http_status = $5, error = $6
            where id = $1 and lock = $2 and tries = $3 and state in ('pending', $4)";
        let error = error.map(clean);
        let write = || {
            sqlx::query(SQL)
                .bind(delivery.id)
                .bind(delivery.lock)
                .bind(i32::try_from(delivery.tries).unwrap_or(i32::MAX))
                .bind(state)
                .bind(http_status.map(u16::cast_signed))
                .bind(&error)
                .execute(self.pool())
        };
        if self.persist(write).await?.rows_affected() > 0 { Ok(()) } else { Err(Error::LeaseLost) }
    }
}
