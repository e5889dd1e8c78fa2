//! API keys. Of a key `id:secret` only a hash of the secret is stored.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use rand::{TryRngCore, rngs::OsRng};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Error, Store, jobs::clean};

/// How long a found key is believed without asking again. A revocation is heard of at once; this is what holds when
/// the notification got lost.
const BELIEVED: Duration = Duration::from_secs(30);
/// Last use is written down this often at most, by each process.
const LAST_USED: Duration = Duration::from_secs(60);
/// Keys longer than this are none; ours are 101 characters.
const LONGEST: usize = 512;

/// A key's text, shown once. `Debug` does not show it.
pub struct KeyText(String);

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(…)")
    }
}

/// A key just made.
#[derive(Debug)]
pub struct NewKey {
    /// The part before the colon, which may be shown.
    pub id: String,
    /// `id:secret`, which cannot be shown again.
    pub text: KeyText,
}

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ApiKey {
    /// The part before the colon.
    pub id: String,
    /// What the operator calls it.
    pub name: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// What a text is as a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// A key that opens the door.
    Key {
        /// Its id.
        id: String,
    },
    /// Not of the form `id:secret`.
    Malformed,
    /// No such key, a wrong secret, or a revoked key.
    Unknown,
}

type Hash = [u8; 32];

impl Store {
    /// Makes a key.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn create_key(&self, name: &str) -> Result<NewKey, Error> {
        const SQL: &str = "/* create_key */
            insert into api_keys (id, name, secret_hash, created_at) values ($1, $2, $3, kiln_now())
            on conflict (id) do nothing";
        let (key, hash) = generate();
        let name = clean(name);
        let write = || sqlx::query(SQL).bind(&key.id).bind(&name).bind(&hash[..]).execute(self.pool());
        self.persist(write).await?;
        Ok(key)
    }

    /// Makes a key if there has never been one; of several processes that ask at once, one gets it.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn create_first_key(&self, name: &str) -> Result<Option<NewKey>, Error> {
        // Whoever waited for the lock sees the other's key: the second statement has a snapshot of its own.
        const LOCK: &str = "/* create_first_key */ lock table api_keys in share row exclusive mode";
        const SQL: &str = "/* create_first_key */
            insert into api_keys (id, name, secret_hash, created_at)
            select $1, $2, $3, kiln_now() where not exists (select from api_keys where id <> $1)
            on conflict (id) do update set name = excluded.name";
        let (key, hash) = generate();
        let name = clean(name);
        let write = || async {
            let mut tx = self.pool().begin().await?;
            sqlx::query(LOCK).execute(&mut *tx).await?;
            let done = sqlx::query(SQL).bind(&key.id).bind(&name).bind(&hash[..]).execute(&mut *tx).await?;
            tx.commit().await?;
            Ok(done.rows_affected() > 0)
        };
        Ok(self.persist(write).await?.then_some(key))
    }

    /// Lists all keys, revoked ones too, oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn list_keys(&self) -> Result<Vec<ApiKey>, Error> {
        const SQL: &str = "/* list_keys */
            select id, name, created_at, last_used_at, revoked_at from api_keys order by created_at, id";
        self.persist(|| sqlx::query_as(SQL).fetch_all(self.pool())).await
    }

    /// Revokes a key; false when there is none of that id, or it was revoked before. Every server hears of it at
    /// once.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn revoke_key(&self, id: &str) -> Result<bool, Error> {
        const SQL: &str = "/* revoke_key */
            update api_keys set revoked_at = kiln_now() where id = $1 and revoked_at is null";
        let id = clean(id);
        let done = self.persist(|| sqlx::query(SQL).bind(&id).execute(self.pool())).await?;
        self.inner.keys.forget(&id);
        Ok(done.rows_affected() > 0)
    }

    /// Checks a key as a client sent it; blanks around it are forgiven.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn verify_key(&self, text: &str) -> Result<Verified, Error> {
        let Some((id, secret)) = text.trim().split_once(':') else { return Ok(Verified::Malformed) };
        if id.is_empty() || secret.is_empty() {
            return Ok(Verified::Malformed);
        }
        if text.len() > LONGEST || id.contains('\0') {
            return Ok(Verified::Unknown);
        }
        let offered: Hash = Sha256::digest(secret.as_bytes()).into();
        let (stored, touch) = match self.inner.keys.look_up(id) {
            Some(found) => found,
            None => match self.stored_hash(id).await? {
                Some(hash) => (hash, self.inner.keys.learn(id, hash)),
                None => return Ok(Verified::Unknown),
            },
        };
        if !same(&stored, &offered) {
            return Ok(Verified::Unknown);
        }
        if touch {
            self.note_use(id);
        }
        Ok(Verified::Key { id: id.to_owned() })
    }

    async fn stored_hash(&self, id: &str) -> Result<Option<Hash>, Error> {
        const SQL: &str = "/* stored_hash */
            select secret_hash from api_keys where id = $1 and revoked_at is null";
        let hash: Option<Vec<u8>> =
            self.persist(|| sqlx::query_scalar(SQL).bind(id).fetch_optional(self.pool())).await?;
        Ok(hash.map(|hash| hash.try_into().expect("invariant: a constraint says that hashes have 32 bytes")))
    }

    /// Writes the last use down, beside the request and without holding it up.
    fn note_use(&self, id: &str) {
        const SQL: &str = "/* note_use */ update api_keys set last_used_at = kiln_now() where id = $1";
        self.inner.keys.used(id);
        let (pool, id) = (self.pool().clone(), id.to_owned());
        tokio::spawn(async move {
            if let Err(error) = sqlx::query(SQL).bind(&id).execute(&pool).await {
                tracing::debug!(%error, "the last use of a key was not written down");
            }
        });
    }
}

fn generate() -> (NewKey, Hash) {
    let id = Uuid::new_v4().to_string();
    let secret = hex::encode(random_32());
    let hash = Sha256::digest(secret.as_bytes()).into();
    let text = KeyText(format!("{id}:{secret}"));
    (NewKey { id, text }, hash)
}

/// 32 bytes from the operating system.
pub(crate) fn random_32() -> [u8; 32] {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).expect("invariant: the operating system has randomness");
    bytes
}

/// Compares in a time that does not depend on where the two differ.
fn same(a: &Hash, b: &Hash) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}

/// Keys that were found lately. Unknown ones are not kept: guessing must not fill memory.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    hash: Hash,
    asked: Instant,
    used: Option<Instant>,
}

impl Known {
    fn wants_touch(&self) -> bool {
        self.used.is_none_or(|used| used.elapsed() > LAST_USED)
    }
}

impl KeyCache {
    /// The stored hash, and whether the use should be written down.
    fn look_up(&self, id: &str) -> Option<(Hash, bool)> {
        let known = self.lock();
        let known = known.get(id).filter(|known| known.asked.elapsed() < BELIEVED)?;
        Some((known.hash, known.wants_touch()))
    }

    fn learn(&self, id: &str, hash: Hash) -> bool {
        let mut known = self.lock();
        let used = known.get(id).and_then(|known| known.used);
        let entry = Known { hash, asked: Instant::now(), used };
        let touch = entry.wants_touch();
        known.insert(id.to_owned(), entry);
        touch
    }

    fn used(&self, id: &str) {
        if let Some(known) = self.lock().get_mut(id) {
            known.used = Some(Instant::now());
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_equal_only_when_every_byte_is() {
        let a = random_32();
        assert!(same(&a, &a.clone()));
        for byte in 0..32 {
            let mut b = a;
            b[byte] ^= 1;
            assert!(!same(&a, &b), "byte {byte}");
        }
    }

    #[test]
    fn a_key_is_not_shown_by_debug() {
        let (key, _) = generate();
        let (_, secret) = key.text.0.split_once(':').expect("id:secret");
        assert!(!format!("{key:?}").contains(secret));
        assert_eq!(key.text.to_string(), format!("{}:{secret}", key.id));
    }
}
