//! Rate limits: a bucket of tokens for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Instant;

/// Addresses that are remembered; when there are more, full buckets are forgotten.
const MOST_ADDRESSES: usize = 10_000;

pub struct RateLimit {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl RateLimit {
    pub fn new(per_second: u32, burst: u32) -> RateLimit {
        RateLimit {
            per_second: f64::from(per_second),
            burst: f64::from(burst),
            buckets: Mutex::new(HashMap::new()),
        }
    }

    /// Takes a token if there is one.
    pub fn allows(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(|e| e.into_inner());
        let refill = |(tokens, since): (f64, Instant)| {
            let elapsed = now.saturating_duration_since(since).as_secs_f64();
            (tokens + elapsed * self.per_second).min(self.burst)
        };
        if buckets.len() >= MOST_ADDRESSES && !buckets.contains_key(&address) {
            buckets.retain(|_, bucket| refill(*bucket) < self.burst);
            if buckets.len() >= MOST_ADDRESSES {
                return false;
            }
        }
        let bucket = buckets.entry(address).or_insert((self.burst, now));
        *bucket = (refill(*bucket), now);
        if bucket.0 < 1.0 {
            return false;
        }
        bucket.0 -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let limit = RateLimit::new(10, 3);
        let start = Instant::now();
        let me = IpAddr::from([10, 0, 0, 1]);
        let other = IpAddr::from([10, 0, 0, 2]);
        assert_eq!((0..5).filter(|_| limit.allows(me, start)).count(), 3);
        assert!(
            limit.allows(other, start),
            "addresses do not share a bucket"
        );
        let later = start + Duration::from_millis(200);
        assert_eq!((0..5).filter(|_| limit.allows(me, later)).count(), 2);
    }
}
