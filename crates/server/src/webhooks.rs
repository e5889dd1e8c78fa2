//! Signs and delivers the outbox, and publishes the keys.
//!
//! Deliveries are rows that the end of a job wrote; any number of servers share them out by leases. Each try is signed
//! anew, because receivers refuse old timestamps. A receiver that is slow or dead holds a few slots of its own and
//! nothing else: the store hands out at most [`Options::each`] deliveries per receiver, and a receiver whose last try
//! failed gets one at a time until it answers again.
//!
//! Source: fal's documentation of webhooks and of their verification (`protocol.md` §6).

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use bytes::Bytes;
use ed25519_dalek::Signer as _;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use objects::outbound;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use store::{Answer, Delivery};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::route::Service;
use crate::{App, Call, wire};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-fal-webhook-request-id");
const USER_ID: HeaderName = HeaderName::from_static("x-fal-webhook-user-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-fal-webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("x-fal-webhook-signature");
/// The user of requests that came without a key.
const NO_USER: &str = "anonymous";
/// Pause after the database could not be asked.
const BACK_OFF: Duration = Duration::from_secs(1);
/// How late a try may be.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time for writing down how a try ended, on top of the try itself: more than the store rides out a lost database. A
/// try whose server was killed is repeated after both.
const WRITING: Duration = Duration::from_secs(15);

/// How webhooks are delivered.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tries at the same time, by this server.
    pub parallel: usize,
    /// Tries at the same time per receiver, by this server.
    pub each: u32,
    /// How long the first try may take.
    pub first_timeout: Duration,
    /// How long each later try may take.
    pub timeout: Duration,
    /// Pause before the second try; doubles from try to try.
    pub first_pause: Duration,
    /// Tries in all.
    pub tries: u32,
}

impl Default for Options {
    /// Ten tries over two hours (14 s × (2⁹ − 1) = 7154 s), the second within 15 s, as fal's documentation has it.
    fn default() -> Self {
        Self {
            parallel: 256,
            each: 4,
            first_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(60),
            first_pause: Duration::from_secs(14),
            tries: 10,
        }
    }
}

impl Options {
    /// The pause after a failed try; `None` when it was the last.
    fn pause(&self, tries: u32) -> Option<Duration> {
        (tries < self.tries).then(|| self.first_pause * 2u32.saturating_pow(tries.saturating_sub(1)))
    }

    fn timeout_of(&self, tries: u32) -> Duration {
        if tries <= 1 { self.first_timeout } else { self.timeout }
    }
}

/// Delivers for ever. Run it beside a server, and drop it on shutdown: tries under way are then repeated later.
pub async fn deliver(app: Arc<App>) -> Infallible {
    let options = app.options.webhooks.clone();
    let hold = options.timeout.max(options.first_timeout) + WRITING;
    let mut trying: JoinSet<(String, bool)> = JoinSet::new();
    let mut receivers = Receivers::default();
    let mut signal = app.store.webhook_signal();
    loop {
        let free = options.parallel.saturating_sub(trying.len());
        let limit = u32::try_from(free).unwrap_or(u32::MAX);
        let due = if limit == 0 {
            Vec::new()
        } else {
            match app.store.due_webhooks(limit, 1, &receivers.busy(options.each), hold).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%error, "the outbox cannot be read; trying again");
                    tokio::time::sleep(BACK_OFF).await;
                    continue;
                }
            }
        };
        let more = !due.is_empty();
        for delivery in due {
            receivers.begin(&delivery.receiver);
            let app = app.clone();
            trying.spawn(async move {
                let receiver = delivery.receiver.clone();
                let answered = attempt(&app, delivery).await;
                (receiver, answered)
            });
        }
        if more {
            // One of each receiver at a time: the next round takes the next ones.
            while let Some(Ok((receiver, answered))) = trying.try_join_next() {
                receivers.end(&receiver, answered);
            }
            continue;
        }
        tokio::select! {
            Some(ended) = trying.join_next() => {
                if let Ok((receiver, answered)) = ended {
                    receivers.end(&receiver, answered);
                }
            }
            () = signal.changed() => {}
            // A try falls due without anybody saying so.
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Who is being told at the moment, and who did not listen the last time.
#[derive(Debug, Default)]
struct Receivers(HashMap<String, (u32, bool)>);

impl Receivers {
    fn begin(&mut self, receiver: &str) {
        self.0.entry(receiver.to_owned()).or_default().0 += 1;
    }

    fn end(&mut self, receiver: &str, answered: bool) {
        let Some((trying, failed)) = self.0.get_mut(receiver) else { return };
        *trying = trying.saturating_sub(1);
        *failed = !answered;
        if *trying == 0 && answered {
            self.0.remove(receiver);
        } else if self.0.len() > 10_000 {
            // What is known about idle receivers is only worth so much room.
            self.0.retain(|_, (trying, _)| *trying > 0);
        }
    }

    /// Those that may have no further try now.
    fn busy(&self, each: u32) -> Vec<String> {
        let full = |(trying, failed): &(u32, bool)| *trying >= if *failed { 1 } else { each };
        self.0.iter().filter(|(_, state)| full(state)).map(|(receiver, _)| receiver.clone()).collect()
    }
}

/// One try from its signature to its record; whether the receiver answered at all.
async fn attempt(app: &App, delivery: Delivery) -> bool {
    let options = &app.options.webhooks;
    let (store, id) = (&app.store, delivery.job);
    let outcome = match signed(app, &delivery).await {
        Ok((headers, body)) => {
            let timeout = options.timeout_of(delivery.tries);
            app.outbound.post(&delivery.url, headers, body, timeout).await
        }
        Err(error) => {
            tracing::warn!(job_id = %id, %error, "a webhook cannot be signed; trying again");
            let _ = store.webhook_retry(&delivery, BACK_OFF, None, "the signing key could not be read").await;
            return true;
        }
    };
    let (answered, written) = match outcome {
        Ok(status @ 200..=299) => {
            tracing::info!(job_id = %id, status, tries = delivery.tries, "webhook delivered");
            (true, store.webhook_delivered(&delivery, status).await)
        }
        Ok(status @ 300..=399) => {
            tracing::info!(job_id = %id, status, "webhook given up: redirects are not followed");
            (true, store.webhook_gave_up(&delivery, Some(status), "redirects are not followed").await)
        }
        Ok(status) => {
            (status < 500, again(app, &delivery, Some(status), &format!("answered {status}")).await)
        }
        Err(error @ (outbound::Error::Refused { .. } | outbound::Error::NotAUrl { .. })) => {
            tracing::info!(job_id = %id, %error, "webhook given up");
            (true, store.webhook_gave_up(&delivery, None, &error.to_string()).await)
        }
        Err(error) => (false, again(app, &delivery, None, &error.to_string()).await),
    };
    match written {
        Ok(()) | Err(store::Error::LeaseLost) => {}
        Err(error) => tracing::error!(job_id = %id, %error, "the end of a webhook's try cannot be recorded"),
    }
    answered
}

async fn again(app: &App, delivery: &Delivery, status: Option<u16>, error: &str) -> Result<(), store::Error> {
    match app.options.webhooks.pause(delivery.tries) {
        Some(pause) => {
            tracing::info!(job_id = %delivery.job, tries = delivery.tries, error, seconds = pause.as_secs(), "webhook failed, again later");
            app.store.webhook_retry(delivery, pause, status, error).await
        }
        None => {
            tracing::warn!(job_id = %delivery.job, tries = delivery.tries, error, "webhook given up");
            app.store.webhook_gave_up(delivery, status, error).await
        }
    }
}

/// The body, and the headers that sign those very bytes at this moment.
async fn signed(app: &App, delivery: &Delivery) -> Result<(HeaderMap, Bytes), store::Error> {
    let keys = app.store.signing_keys().await?;
    let key = keys.first().ok_or(store::Error::Config("there is no signing key".into()))?;
    let files_url = app.options.public_url.as_ref().map(|url| wire::Origin::public(url).base(Service::Cdn));
    let files_url = files_url.as_deref().or(delivery.files_url.as_deref()).unwrap_or_default();
    let body = Bytes::from(payload(delivery, files_url).to_string());
    let id = delivery.job.to_string();
    let user = delivery.key_id.as_deref().unwrap_or(NO_USER);
    let timestamp = app.options.clock.now().timestamp().to_string();
    let signature = key.key.sign(message(&id, user, &timestamp, &body).as_bytes());
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(CONTENT_TYPE, wire::JSON);
    for (name, value) in [
        (REQUEST_ID, id.as_str()),
        (USER_ID, user),
        (TIMESTAMP, &timestamp),
        (SIGNATURE, &hex::encode(signature.to_bytes())),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    Ok((headers, body))
}

/// What is signed.
fn message(id: &str, user: &str, timestamp: &str, body: &[u8]) -> String {
    format!("{id}\n{user}\n{timestamp}\n{}", hex::encode(Sha256::digest(body)))
}

fn payload(delivery: &Delivery, files_url: &str) -> Value {
    let id = delivery.job;
    match &delivery.answer {
        Answer::Completed(outcome) => json!({
            "request_id": id,
            "gateway_request_id": id,
            "status": "OK",
            "payload": wire::public_outcome(outcome, files_url),
        }),
        Answer::Failed(failure) => json!({
            "request_id": id,
            "gateway_request_id": id,
            "status": "ERROR",
            "error": failure.webhook_error(),
            "payload": failure.body(),
        }),
        // A delivery is written with the end of its job, so there is always an answer unless it was deleted since.
        Answer::Pending => json!({
            "request_id": id,
            "gateway_request_id": id,
            "status": "OK",
            "payload": null,
            "payload_error": "The result was deleted",
        }),
    }
}

/// `GET rest/.well-known/jwks.json`. Each key twice: fal's documented Python verifier needs the padding that the
/// standard forbids, others dislike it; both skip what they cannot read.
pub(crate) async fn jwks(call: &Call<'_>) -> Result<Response, Error> {
    let keys = call.store().signing_keys().await?;
    let jwk = |kid: &str, x: String| json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x});
    let keys: Vec<Value> = keys
        .iter()
        .flat_map(|key| {
            let public = key.key.verifying_key().to_bytes();
            let padded = format!("{}-padded", key.kid);
            [jwk(&key.kid, URL_SAFE_NO_PAD.encode(public)), jwk(&padded, URL_SAFE.encode(public))]
        })
        .collect();
    let mut response = wire::json(StatusCode::OK, &json!({"keys": keys}));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_tries_take_two_hours_and_the_second_comes_within_fifteen_seconds() {
        let options = Options::default();
        let pauses: Vec<u64> =
            (1..=10).map_while(|tries| options.pause(tries)).map(|p| p.as_secs()).collect();
        assert_eq!(pauses.len(), 9);
        assert!(pauses[0] <= 15, "{pauses:?}");
        assert!(pauses.windows(2).all(|pair| pair[1] == 2 * pair[0]), "{pauses:?}");
        let all: u64 = pauses.iter().sum();
        assert!((6900..=7200).contains(&all), "{all}");
        assert_eq!(options.pause(10), None);
    }

    #[test]
    fn a_receiver_that_fails_gets_one_try_at_a_time() {
        let mut receivers = Receivers::default();
        for _ in 0..2 {
            receivers.begin("a");
        }
        assert_eq!((receivers.busy(4), receivers.busy(2)), (vec![], vec!["a".to_owned()]));
        receivers.end("a", false);
        assert_eq!(receivers.busy(4), ["a"], "one is still under way");
        receivers.end("a", false);
        assert_eq!(receivers.busy(4), Vec::<String>::new());
        receivers.begin("a");
        assert_eq!(receivers.busy(4), ["a"]);
        receivers.end("a", true);
        receivers.begin("a");
        assert_eq!(receivers.busy(4), Vec::<String>::new());
    }

    #[test]
    fn the_signed_message_is_the_documented_one() {
        assert_eq!(
            message("r", "u", "1700000000", b"{}"),
            "r\nu\n1700000000\n44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }
}
