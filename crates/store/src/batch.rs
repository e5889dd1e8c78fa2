//! Coalescing: callers that come at the same time share one statement.
//!
//! A call that finds nobody at work runs at once and alone. Calls that come while others run wait for them and then
//! go together, so batches grow exactly with the load and an idle store adds no latency.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

type Run<I, O> = dyn Fn(Vec<I>) -> BoxFuture<'static, Vec<O>> + Send + Sync;

/// Limits of one batcher.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Batches under way at the same time.
    pub(crate) parallel: usize,
    /// Most items in one batch.
    pub(crate) items: usize,
    /// Most weight in one batch; a single heavier item goes alone.
    pub(crate) weight: usize,
}

/// Gathers concurrent calls into batches.
pub(crate) struct Batcher<I, O> {
    shared: Arc<Shared<I, O>>,
}

struct Shared<I, O> {
    queue: Mutex<Queue<I, O>>,
    limits: Limits,
    weigh: fn(&I) -> usize,
    run: Box<Run<I, O>>,
}

struct Queue<I, O> {
    waiting: VecDeque<(I, oneshot::Sender<O>)>,
    running: usize,
}

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// `run` gets a batch and answers with one output per item, in order.
    pub(crate) fn new(
        limits: Limits,
        weigh: fn(&I) -> usize,
        run: impl Fn(Vec<I>) -> BoxFuture<'static, Vec<O>> + Send + Sync + 'static,
    ) -> Self {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), running: 0 });
        Self { shared: Arc::new(Shared { queue, limits, weigh, run: Box::new(run) }) }
    }

    /// Runs one item with whatever else is waiting. `None` when the batch was cut off by the runtime's shutdown.
    ///
    /// The item runs to its end even when the caller goes away.
    pub(crate) async fn call(&self, item: I) -> Option<O> {
        let (answer, answered) = oneshot::channel();
        let start = {
            let mut queue = self.shared.lock();
            queue.waiting.push_back((item, answer));
            let start = queue.running < self.shared.limits.parallel;
            queue.running += usize::from(start);
            start
        };
        if start {
            tokio::spawn(drain(self.shared.clone()));
        }
        answered.await.ok()
    }
}

impl<I, O> Shared<I, O> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue<I, O>> {
        // The queue is consistent after every statement that holds the lock, so a panic elsewhere does no harm.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch, or nothing, and then this runner is counted out.
    fn take(&self) -> Vec<(I, oneshot::Sender<O>)> {
        let mut queue = self.lock();
        let mut batch: Vec<(I, oneshot::Sender<O>)> = Vec::new();
        let mut weight = 0;
        while batch.len() < self.limits.items
            && let Some((item, _)) = queue.waiting.front()
        {
            weight += (self.weigh)(item);
            if weight > self.limits.weight && !batch.is_empty() {
                break;
            }
            batch.extend(queue.waiting.pop_front());
        }
        if batch.is_empty() {
            queue.running -= 1;
        }
        batch
    }
}

/// Counts a runner out that panicked or was dropped in the middle of a batch.
struct Counted<I, O>(Option<Arc<Shared<I, O>>>);

impl<I, O> Drop for Counted<I, O> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.lock().running -= 1;
        }
    }
}

async fn drain<I: Send + 'static, O: Send + 'static>(shared: Arc<Shared<I, O>>) {
    let mut counted = Counted(Some(shared.clone()));
    loop {
        let batch = shared.take();
        if batch.is_empty() {
            counted.0 = None;
            return;
        }
        let (items, answers): (Vec<I>, Vec<_>) = batch.into_iter().unzip();
        for (output, answer) in (shared.run)(items).await.into_iter().zip(answers) {
            // A caller that went away does not want its answer.
            let _gone = answer.send(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sizes(limits: Limits) -> Batcher<usize, usize> {
        Batcher::new(
            limits,
            |item| *item,
            |items| {
                Box::pin(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    vec![items.len(); items.len()]
                })
            },
        )
    }

    #[tokio::test]
    async fn calls_that_come_while_a_batch_runs_go_together() {
        let batcher = Arc::new(sizes(Limits { parallel: 1, items: 8, weight: 100 }));
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.call(1).await }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        let rest = futures_util::future::join_all((0..5).map(|_| batcher.call(1))).await;
        assert_eq!(first.await.expect("the task ends"), Some(1));
        assert_eq!(rest, vec![Some(5); 5]);
    }

    #[tokio::test]
    async fn a_batch_keeps_to_its_weight_and_a_heavy_item_goes_alone() {
        let batcher = sizes(Limits { parallel: 1, items: 8, weight: 10 });
        let sizes = futures_util::future::join_all([99, 6, 6, 4].map(|w| batcher.call(w))).await;
        assert_eq!(sizes, [Some(1), Some(1), Some(2), Some(2)]);
    }
}
