//! Bodies of requests: how long they may take, how much of them may be in memory at once, and what
//! becomes of the rest of one that nobody reads.
//!
//! Closing a connection whose other side is still sending makes its kernel throw away the answer.
//! So what a handler leaves unread is read and thrown away, within bounds, before the answer goes.

use super::places::{Activity, Busy};
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A body that takes longer is somebody holding a place.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is read of a body that nobody wants: more than any that is allowed.
const MOST_UNWANTED: usize = 64 << 20;
const UNWANTED_PATIENCE: Duration = Duration::from_secs(5);

/// Bodies in memory, of all connections together, in pieces.
const PIECE: usize = 64 << 10;
const MOST_PIECES: usize = (128 << 20) / PIECE;
static PIECES: Semaphore = Semaphore::const_new(MOST_PIECES);

/// Memory for a body that is being read; given back when it is dropped.
#[derive(Default)]
pub struct Room {
    held: Option<SemaphorePermit<'static>>,
    pieces: usize,
}

impl Room {
    /// Makes room for `bytes` in all. False: there is none now.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let wanted = bytes.div_ceil(PIECE);
        let more = wanted.saturating_sub(self.pieces);
        let Ok(more) = u32::try_from(more) else {
            return false;
        };
        if more == 0 {
            return true;
        }
        let Ok(permit) = PIECES.try_acquire_many(more) else {
            return false;
        };
        self.pieces = wanted;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        true
    }
}

/// A request's body, which its connection goes on with when the handler is done.
struct Inner {
    body: Body,
    patience: Option<Pin<Box<tokio::time::Sleep>>>,
    activity: Arc<Activity>,
    busy: Option<Busy>,
    is_over: bool,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Inner>>);

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    /// All of it was read: now the answer is ours to make.
    fn end(&mut self) {
        self.is_over = true;
        let activity = &self.activity;
        self.busy.get_or_insert_with(|| activity.busy());
    }
}

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut inner = self.lock();
        match Pin::new(&mut inner.body).poll_frame(context) {
            Poll::Pending => {
                let patience = inner
                    .patience
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                match patience.as_mut().poll(context) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        inner.is_over = true;
                        Poll::Ready(Some(Err(axum::Error::new(TooSlow))))
                    }
                }
            }
            Poll::Ready(None) => {
                inner.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                inner.is_over = true;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                if inner.body.is_end_stream() {
                    inner.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the request's body took longer than 30 seconds")]
struct TooSlow;

/// Answers a request, and reads what is left of its body.
pub async fn answered<F>(
    request: Request,
    activity: &Arc<Activity>,
    answer: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let (parts, body) = request.into_parts();
    // Who asks before sending has not sent.
    let asks = parts.headers.contains_key(http::header::EXPECT);
    let is_over = body.is_end_stream();
    let shared = Shared(Arc::new(Mutex::new(Inner {
        body,
        patience: None,
        activity: activity.clone(),
        busy: is_over.then(|| activity.busy()),
        is_over,
    })));
    let rest = shared.clone();
    let response = answer(Request::from_parts(parts, Body::new(shared))).await;
    let is_over = rest.lock().is_over;
    if !asks && !is_over {
        let _ = tokio::time::timeout(UNWANTED_PATIENCE, throw_away(rest)).await;
    }
    response
}

async fn throw_away(mut body: Shared) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MOST_UNWANTED {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_a_bounded_memory() {
        let mut all = Room::default();
        assert!(all.grow(1) && all.grow(PIECE) && all.pieces == 1);
        assert!(all.grow(PIECE + 1) && all.pieces == 2);
        assert!(!all.grow(PIECE * (MOST_PIECES + 1)), "more than there is");
        assert!(!all.grow(usize::MAX));
        assert_eq!(all.pieces, 2);
    }
}
