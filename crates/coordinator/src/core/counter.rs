//! Monotonic counters of marbles.

use super::tables::counter_key;
use super::{Coordinator, Credentials, Error};
use crate::store::Batch;

/// Names are kept for ever: they are bounded in length, and per marble in number.
const MOST_NAME: usize = 256;
const MOST_COUNTERS: usize = 1000;

impl Coordinator {
    /// Raises a counter to `value` if that is more; returns what it was.
    pub(super) async fn try_set_counter(
        &self,
        name: &str,
        value: u64,
        credentials: Credentials<'_>,
    ) -> Result<u64, Error> {
        let live = self.live()?;
        if !live.manifest.config.has_gate("MonotonicCounter") {
            return Err(Error::Forbidden(
                "MonotonicCounter is not enabled by the manifest's FeatureGates".to_owned(),
            ));
        }
        let certificate = credentials.certificate.unwrap_or_default();
        let (marble_type, uuid) = live.pki.marble_of(certificate).ok_or_else(|| {
            Error::Unauthorized("a marble's current certificate is required".to_owned())
        })?;
        if self.is_taken_back(&live, certificate, &uuid) {
            return Err(Error::Unauthorized("this marble is revoked".to_owned()));
        }
        if name.is_empty() || name.len() > MOST_NAME {
            return Err(Error::BadRequest(format!(
                "a counter's name has 1 to {MOST_NAME} bytes"
            )));
        }
        let prefix = format!("{marble_type}:{uuid}:");
        let full_name = format!("{prefix}{name}");
        let receipt = {
            let mut counters = self.tables.counters();
            let previous = counters.get(&full_name).copied();
            if previous.is_none()
                && counters
                    .keys()
                    .filter(|name| name.starts_with(&prefix))
                    .count()
                    >= MOST_COUNTERS
            {
                return Err(Error::Refused(format!(
                    "a marble has at most {MOST_COUNTERS} counters"
                )));
            }
            let previous = previous.unwrap_or(0);
            if value <= previous {
                return Ok(previous);
            }
            counters.insert(full_name.clone(), value);
            let batch = Batch::default().put(counter_key(&full_name), value.to_string());
            (previous, self.queue(&live, self.tables.epoch(), batch))
        };
        Self::durable(receipt.1).await?;
        Ok(receipt.0)
    }
}
