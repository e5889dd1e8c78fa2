//! The installation's own keys and secrets: made once, the same for every process on the database.

use chrono::{DateTime, Utc};

use crate::{Error, Store, keys::random_32};

/// A key that signs webhooks.
#[derive(Clone)]
pub struct SigningKey {
    /// Its name in the JWKS document.
    pub kid: String,
    /// The pair.
    pub key: ed25519_dalek::SigningKey,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Store {
    /// The signing keys, newest first; sign with the first, publish all. The first call ever makes one.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn signing_keys(&self) -> Result<Vec<SigningKey>, Error> {
        const SQL: &str = "/* signing_keys */
            select kid, seed, created_at from signing_keys order by created_at desc, kid";
        const LOCK: &str = "/* create_signing_key */ lock table signing_keys in share row exclusive mode";
        const CREATE: &str = "/* create_signing_key */
            insert into signing_keys (kid, seed, created_at)
            select $1, $2, kiln_now() where not exists (select from signing_keys)";
        loop {
            let rows: Vec<(String, Vec<u8>, DateTime<Utc>)> =
                self.persist(|| sqlx::query_as(SQL).fetch_all(self.pool())).await?;
            if !rows.is_empty() {
                return Ok(rows.into_iter().map(|(kid, seed, at)| signing_key(kid, seed, at)).collect());
            }
            let key = ed25519_dalek::SigningKey::from_bytes(&random_32());
            let kid = hex::encode(&key.verifying_key().as_bytes()[..8]);
            let create = || async {
                let mut tx = self.pool().begin().await?;
                sqlx::query(LOCK).execute(&mut *tx).await?;
                sqlx::query(CREATE).bind(&kid).bind(&key.to_bytes()[..]).execute(&mut *tx).await?;
                tx.commit().await
            };
            self.persist(create).await?;
        }
    }

    /// A random secret by name, made by whoever asks first.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn secret(&self, name: &str) -> Result<[u8; 32], Error> {
        // The update that changes nothing makes the statement return the row that was there before.
        const SQL: &str = "/* secret */
            insert into secrets (name, value, created_at) values ($1, $2, kiln_now())
            on conflict (name) do update set name = excluded.name
            returning value";
        let fresh = random_32();
        let ask = || sqlx::query_scalar(SQL).bind(name).bind(&fresh[..]).fetch_one(self.pool());
        let value: Vec<u8> = self.persist(ask).await?;
        Ok(value.try_into().expect("invariant: a constraint says that secrets have 32 bytes"))
    }
}

fn signing_key(kid: String, seed: Vec<u8>, created_at: DateTime<Utc>) -> SigningKey {
    let seed: [u8; 32] = seed.try_into().expect("invariant: a constraint says that seeds have 32 bytes");
    SigningKey { kid, key: ed25519_dalek::SigningKey::from_bytes(&seed), created_at }
}
