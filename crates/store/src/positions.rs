//! Queue positions without counting the queue for every caller.
//!
//! Each process keeps the waiting rows' numbers of the queues it is asked about. Notifications say when a copy no
//! longer holds: after arrivals the newer rows are added, after departures the copy is read again. A position is
//! then a binary search, whether ten requests wait or ten thousand.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::PgPool;

/// Age at which a copy is read again even if nothing was heard: rows can commit out of order, and notifications
/// arrive late.
const FRESH: Duration = Duration::from_secs(1);
/// Reading a long queue again takes at most this share of the time.
const SHARE: u32 = 20;

/// One waiting job, as its row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: String,
    /// 0 normal, 1 low
    pub(crate) priority: i16,
    pub(crate) seq: i64,
}

/// The copies, by queue.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    queues: Mutex<HashMap<String, std::sync::Arc<Queue>>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Counted up by every arrival, and by every departure, that we heard of.
    arrivals: AtomicU64,
    departures: AtomicU64,
    copy: tokio::sync::Mutex<Option<Copy>>,
}

#[derive(Debug)]
struct Copy {
    arrivals: u64,
    departures: u64,
    read: Instant,
    keep: Duration,
    /// Numbers of the waiting rows, rising; one list per priority.
    waiting: [Vec<i64>; 2],
}

impl Positions {
    pub(crate) fn grew(&self, path: &str) {
        self.queue(path).arrivals.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn moved(&self, path: &str) {
        self.queue(path).departures.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn reset(&self) {
        for queue in self.lock().values() {
            queue.departures.fetch_add(1, Ordering::Release);
        }
    }

    /// Waiting requests ahead of each place: the normal ones of its queue, and for a low one the low ones too, that
    /// came before it.
    pub(crate) async fn of(&self, pool: &PgPool, places: &[Place]) -> Result<Vec<u64>, sqlx::Error> {
        let mut positions = vec![0; places.len()];
        let mut by_path: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, place) in places.iter().enumerate() {
            by_path.entry(&place.path).or_default().push(index);
        }
        for (path, indices) in by_path {
            let queue = self.queue(path);
            let mut copy = queue.copy.lock().await;
            let newest = indices.iter().map(|&i| places[i].seq).max().unwrap_or_default();
            let copy = queue.refresh(pool, path, newest, &mut copy).await?;
            // Rows can become visible out of order, and then the copy went past them. Whoever is asked about waits.
            for &index in &indices {
                let list = &mut copy.waiting[usize::from(places[index].priority != 0)];
                if let Err(at) = list.binary_search(&places[index].seq) {
                    list.insert(at, places[index].seq);
                }
            }
            for index in indices {
                let Place { priority, seq, .. } = places[index];
                let [normal, low] = &copy.waiting;
                let ahead = match priority {
                    0 => normal.partition_point(|&other| other < seq),
                    _ => normal.len() + low.partition_point(|&other| other < seq),
                };
                positions[index] = u64::try_from(ahead).expect("invariant: a length fits 64 bits");
            }
        }
        Ok(positions)
    }

    fn queue(&self, path: &str) -> std::sync::Arc<Queue> {
        let mut queues = self.lock();
        if let Some(queue) = queues.get(path) {
            return queue.clone();
        }
        queues.entry(path.to_owned()).or_default().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, std::sync::Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Brings the copy up to date, as far as needed.
    async fn refresh<'a>(
        &self,
        pool: &PgPool,
        path: &str,
        newest: i64,
        slot: &'a mut Option<Copy>,
    ) -> Result<&'a mut Copy, sqlx::Error> {
        // Read before the rows are: what is counted later is looked for again next time.
        let arrivals = self.arrivals.load(Ordering::Acquire);
        let departures = self.departures.load(Ordering::Acquire);
        let copy = match slot.take() {
            Some(mut copy) if copy.departures == departures && copy.read.elapsed() < copy.keep => {
                let last =
                    copy.waiting.iter().filter_map(|list| list.last()).max().copied().unwrap_or(i64::MIN);
                if copy.arrivals != arrivals || newest > last {
                    copy.arrivals = arrivals;
                    for (priority, seq) in waiting_since(pool, path, last).await? {
                        copy.waiting[usize::from(priority != 0)].push(seq);
                    }
                }
                copy
            }
            _ => {
                let begun = Instant::now();
                let mut waiting = [Vec::new(), Vec::new()];
                for (priority, seq) in waiting_since(pool, path, i64::MIN).await? {
                    waiting[usize::from(priority != 0)].push(seq);
                }
                let keep = FRESH.max(begun.elapsed() * SHARE);
                Copy { arrivals, departures, read: Instant::now(), keep, waiting }
            }
        };
        Ok(slot.insert(copy))
    }
}

async fn waiting_since(pool: &PgPool, path: &str, seq: i64) -> Result<Vec<(i16, i64)>, sqlx::Error> {
    const SQL: &str = "/* waiting_since */
        select priority, seq from jobs
        where path = $1 and state = 'queued' and priority = 0 and seq > $2
        union all
        select priority, seq from jobs
        where path = $1 and state = 'queued' and priority = 1 and seq > $2
        order by seq";
    sqlx::query_as(SQL).bind(path).bind(seq).fetch_all(pool).await
}
