//! The places for connections: when all are taken, the connection that has been waiting longest for
//! its other side makes room for a new one.
//!
//! A place costs a stranger nothing but a handshake that is never finished, so refusing newcomers
//! would let one stranger keep everyone out. A connection is *busy* from the last byte of a
//! request until its answer is ready; only the others are ever closed for a newcomer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::task::AbortHandle;

/// All places of one door.
pub struct Places {
    most: usize,
    start: Instant,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    last: u64,
    connections: HashMap<u64, (Arc<Activity>, AbortHandle)>,
}

/// What a connection is doing.
pub struct Activity {
    start: Instant,
    busy: AtomicUsize,
    /// When it last finished something, in milliseconds after `start`.
    since: AtomicU64,
}

impl Activity {
    fn new(start: Instant) -> Activity {
        let activity = Activity {
            start,
            busy: AtomicUsize::new(0),
            since: AtomicU64::new(0),
        };
        activity.touch();
        activity
    }

    /// It has made a step, such as its handshake.
    pub fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now, Ordering::Relaxed);
    }

    /// A request of it is whole; the answer is being made while the guard lives.
    pub fn busy(self: &Arc<Activity>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
}

/// See [`Activity::busy`].
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's own place, free again when it is dropped.
struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.number);
    }
}

impl Places {
    pub fn new(most: usize) -> Arc<Places> {
        Arc::new(Places {
            most,
            start: Instant::now(),
            taken: Mutex::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs a connection in a place, if there is one or one can be made.
    pub fn serve<F>(self: &Arc<Self>, connection: impl FnOnce(Arc<Activity>) -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut taken = self.lock();
        if taken.connections.len() >= self.most && !taken.evict() {
            return false;
        }
        taken.last += 1;
        let number = taken.last;
        let activity = Arc::new(Activity::new(self.start));
        let place = Place {
            places: self.clone(),
            number,
        };
        let running = connection(activity.clone());
        // The task cannot leave the table before it is in it: leaving takes the lock.
        let task = tokio::spawn(async move {
            let _place = place;
            running.await;
        });
        taken
            .connections
            .insert(number, (activity, task.abort_handle()));
        true
    }

    /// Closes the connection that waits longest, for want of something else than places.
    pub fn make_room(&self) -> bool {
        self.lock().evict()
    }
}

impl Taken {
    fn evict(&mut self) -> bool {
        let oldest = self
            .connections
            .iter()
            .filter(|(_, (activity, _))| activity.busy.load(Ordering::Relaxed) == 0)
            // Numbers grow: the smaller one of the same millisecond came first.
            .min_by_key(|(number, (activity, _))| {
                (activity.since.load(Ordering::Relaxed), **number)
            })
            .map(|(number, _)| *number);
        let Some((_, task)) = oldest.and_then(|number| self.connections.remove(&number)) else {
            return false;
        };
        task.abort();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    struct End(u8, mpsc::UnboundedSender<u8>);

    impl Drop for End {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }

    #[tokio::test]
    async fn who_waits_longest_makes_room_and_who_is_busy_does_not() {
        let places = Places::new(3);
        let (ended, mut ends) = mpsc::unbounded_channel();
        let add = |name: u8| {
            let end = End(name, ended.clone());
            let mut own = None;
            let has_place = places.serve(|activity| {
                own = Some(activity);
                async move {
                    let _end = end;
                    std::future::pending::<()>().await;
                }
            });
            has_place.then_some(own).flatten()
        };
        let [first, second, third] = [add(1), add(2), add(3)].map(Option::unwrap);
        let first_busy = first.busy();
        let fourth = add(4).unwrap();
        assert_eq!(ends.recv().await, Some(2), "the first is busy");
        drop(second);
        let _others_busy = [third.busy(), fourth.busy()];
        assert!(add(5).is_none(), "all are busy");
        assert_eq!(ends.recv().await, Some(5));
        drop(first_busy);
        assert!(add(6).is_some());
        assert_eq!(ends.recv().await, Some(1), "it is idle again");
    }
}
