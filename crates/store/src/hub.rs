//! Waking whoever waits: one listening connection per process, and a jittered poll behind it.
//!
//! Interest is registered before the database is asked ([`Subscription`], [`WorkSignal`], [`WebhookSignal`] are made
//! first), so nothing that happens in between is missed. After a reconnect everybody is woken once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{PgPool, postgres::PgListener};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::retry::jittered;

/// A waiting job's position may change with every claim; its watchers are told this often at most.
const QUEUE_MOVES: Duration = Duration::from_secs(1);

/// Where notifications arrive and are handed out.
#[derive(Debug)]
pub(crate) struct Hub {
    poll: Duration,
    jobs: Mutex<HashMap<Uuid, watch::Sender<()>>>,
    /// Something can be claimed.
    work: watch::Sender<()>,
    /// A waiting job left its queue, or returned to it.
    moved: watch::Sender<()>,
    /// A delivery is due.
    webhooks: watch::Sender<()>,
    /// What else has to hear of it.
    observer: Box<dyn Observer>,
}

/// Caches that notifications invalidate.
pub(crate) trait Observer: Send + Sync + std::fmt::Debug {
    fn queue_grew(&self, path: &str);
    fn queue_moved(&self, path: &str);
    fn key_revoked(&self, id: &str);
    /// Notifications may have been missed.
    fn reset(&self);
}

impl Hub {
    pub(crate) fn new(poll: Duration, observer: Box<dyn Observer>) -> Self {
        let [work, moved, webhooks] = std::array::from_fn(|_| watch::Sender::new(()));
        Self { poll, jobs: Mutex::new(HashMap::new()), work, moved, webhooks, observer }
    }

    /// Listens for ever, reconnecting.
    pub(crate) async fn listen(self: Arc<Self>, pool: PgPool) {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.listen_once(&pool, &mut pause).await {
                Ok(()) => tracing::info!("the notification connection was closed: opening it again"),
                Err(error) => {
                    tracing::warn!(%error, "the notification connection was lost: opening it again");
                }
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    async fn listen_once(&self, pool: &PgPool, pause: &mut Duration) -> Result<(), sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        listener.listen_all(["kiln_work", "kiln_queue", "kiln_job", "kiln_webhook", "kiln_key"]).await?;
        self.wake_all();
        *pause = Duration::from_millis(50);
        while let Some(notification) = listener.try_recv().await? {
            self.hand_out(notification.channel(), notification.payload());
        }
        Ok(())
    }

    fn hand_out(&self, channel: &str, payload: &str) {
        match channel {
            "kiln_work" => {
                self.observer.queue_grew(payload);
                self.work.send_replace(());
            }
            "kiln_queue" => {
                self.observer.queue_moved(payload);
                self.moved.send_replace(());
            }
            "kiln_job" => {
                let Ok(id) = payload.parse::<Uuid>() else { return };
                if let Some(job) = self.lock_jobs().get(&id) {
                    job.send_replace(());
                }
            }
            "kiln_webhook" => {
                self.webhooks.send_replace(());
            }
            "kiln_key" => self.observer.key_revoked(payload),
            _ => {}
        }
    }

    fn wake_all(&self) {
        self.observer.reset();
        for job in self.lock_jobs().values() {
            job.send_replace(());
        }
        for signal in [&self.work, &self.moved, &self.webhooks] {
            signal.send_replace(());
        }
    }

    pub(crate) fn subscribe(self: &Arc<Self>, id: Uuid) -> Subscription {
        let job = self.lock_jobs().entry(id).or_default().subscribe();
        Subscription { hub: self.clone(), id, job, moved: self.moved.subscribe(), next_move: Instant::now() }
    }

    pub(crate) fn work_signal(&self) -> WorkSignal {
        WorkSignal { poll: self.poll, work: self.work.subscribe() }
    }

    pub(crate) fn webhook_signal(&self) -> WebhookSignal {
        WebhookSignal { poll: self.poll, webhooks: self.webhooks.subscribe() }
    }

    fn lock_jobs(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Interest in one job.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    id: Uuid,
    job: watch::Receiver<()>,
    moved: watch::Receiver<()>,
    next_move: Instant,
}

impl Subscription {
    /// Returns when something about the job may have changed: state, position, log lines, a cancel request; after a
    /// reconnect; and after the poll interval at the latest. Read the status then. May be dropped and called again.
    pub async fn changed(&mut self) {
        let Self { hub, job, moved, next_move, .. } = self;
        let queue_moved = async {
            tokio::time::sleep_until(*next_move).await;
            wait(moved).await;
        };
        let moved_on = tokio::select! {
            () = wait(job) => false,
            () = queue_moved => true,
            () = tokio::time::sleep(jittered(hub.poll)) => false,
        };
        if moved_on {
            self.next_move = Instant::now() + QUEUE_MOVES;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut jobs = self.hub.lock_jobs();
        // This receiver still counts.
        if jobs.get(&self.id).is_some_and(|job| job.receiver_count() <= 1) {
            jobs.remove(&self.id);
        }
    }
}

/// Interest in work to claim.
#[derive(Debug)]
pub struct WorkSignal {
    poll: Duration,
    work: watch::Receiver<()>,
}

impl WorkSignal {
    /// Returns when something may have become claimable, and after the poll interval at the latest.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = wait(&mut self.work) => {}
            () = tokio::time::sleep(jittered(self.poll)) => {}
        }
    }
}

/// Interest in webhooks to deliver.
#[derive(Debug)]
pub struct WebhookSignal {
    poll: Duration,
    webhooks: watch::Receiver<()>,
}

impl WebhookSignal {
    /// Returns when a new delivery may be due, and after the poll interval at the latest.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = wait(&mut self.webhooks) => {}
            () = tokio::time::sleep(jittered(self.poll)) => {}
        }
    }
}

/// Waits for a change; for ever when the store is gone, so that the poll decides.
async fn wait(receiver: &mut watch::Receiver<()>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
