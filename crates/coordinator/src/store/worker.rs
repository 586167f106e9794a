//! The thread that writes a shared state, and the epochs that keep old values out of it.
//!
//! Batches name the *epoch* of the values they were computed from. Each refresh with news begins a
//! new one, and so does a failure, after which nobody knows what is there; a batch of an older
//! epoch is a [`StoreError::Conflict`]. So nothing that was computed from old values is written.

use super::anchor::{Anchor, Mark};
use super::{Batch, Content, Receipt, RefreshReceipt, Refreshed, StoreError};
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Changes of one transaction: keys with their new values, or none.
pub type Changes = Vec<(String, Option<Vec<u8>>)>;

/// A replica's copy of a state that others write too.
pub trait SharedState: Send + 'static {
    /// Whether one transaction can hold so much.
    fn fits(&self, changes: usize, bytes: usize) -> bool;
    /// Writes all, if nobody else has written since; else it is as it was, and a
    /// [`StoreError::Conflict`]. Returns the revision.
    fn write(&mut self, changes: Changes) -> Result<u64, StoreError>;
    /// Takes in what others have written.
    fn read_news(&mut self) -> Result<News, StoreError>;
    fn content(&self) -> Content;
    /// Which state, and how new.
    fn mark(&self) -> Mark;
}

pub enum News {
    None,
    Changes,
    /// Another state, or this one under another key, is there now.
    Replaced,
}

/// `told`: the epoch that the coordinator knows of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epochs {
    pub now: u64,
    pub told: u64,
}

pub struct Worker<S> {
    queue: mpsc::Sender<Message>,
    thread: std::thread::JoinHandle<Stopped<S>>,
}

/// What a worker leaves.
type Stopped<S> = (S, Epochs, Option<Box<dyn Anchor>>);

enum Message {
    Commit(Batch, Reply),
    Refresh(oneshot::Sender<Result<Refreshed, StoreError>>),
}

type Reply = oneshot::Sender<Result<u64, StoreError>>;

impl<S: SharedState> Worker<S> {
    /// `anchor`: told of what is written or taken in, before anybody else is.
    pub fn start(state: S, epochs: Epochs, anchor: Option<Box<dyn Anchor>>) -> Worker<S> {
        let (queue, messages) = mpsc::channel();
        let running = Running {
            state,
            epochs,
            anchor,
        };
        let thread = std::thread::spawn(move || running.run(&messages));
        Worker { queue, thread }
    }

    /// Ends it, after all that was queued.
    pub fn stop(self) -> Option<Stopped<S>> {
        drop(self.queue);
        self.thread.join().ok()
    }

    pub fn commit(&self, batch: Batch) -> Receipt {
        let (sender, receiver) = oneshot::channel();
        let refused = self.queue.send(Message::Commit(batch, sender)).err();
        if let Some(mpsc::SendError(Message::Commit(_, reply))) = refused {
            let _ = reply.send(Err(StoreError::Failed));
        }
        receiver
    }

    pub fn refresh(&self) -> RefreshReceipt {
        let (sender, receiver) = oneshot::channel();
        let _ = self.queue.send(Message::Refresh(sender));
        receiver
    }
}

/// What a batch counts for in a transaction.
fn size(batch: &Batch) -> usize {
    batch
        .changes
        .iter()
        .map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len) + 64)
        .sum()
}

struct Running<S> {
    state: S,
    epochs: Epochs,
    anchor: Option<Box<dyn Anchor>>,
}

impl<S: SharedState> Running<S> {
    fn run(mut self, messages: &mpsc::Receiver<Message>) -> Stopped<S> {
        let mut next = messages.recv().ok();
        while let Some(message) = next.take() {
            match message {
                Message::Refresh(reply) => {
                    let _ = reply.send(self.refresh());
                }
                Message::Commit(batch, reply) => {
                    let mut changes = batch.changes.len();
                    let mut bytes = size(&batch);
                    let mut group = vec![(batch, reply)];
                    while let Ok(message) = messages.try_recv() {
                        match message {
                            Message::Commit(batch, reply)
                                if self
                                    .state
                                    .fits(changes + batch.changes.len(), bytes + size(&batch)) =>
                            {
                                changes += batch.changes.len();
                                bytes += size(&batch);
                                group.push((batch, reply));
                            }
                            other => {
                                next = Some(other);
                                break;
                            }
                        }
                    }
                    self.write(group);
                }
            }
            if next.is_none() {
                next = messages.recv().ok();
            }
        }
        (self.state, self.epochs, self.anchor)
    }

    fn write(&mut self, group: Vec<(Batch, Reply)>) {
        let (group, stale): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|(batch, _)| batch.epoch == self.epochs.now);
        for (_, reply) in stale {
            let _ = reply.send(Err(StoreError::Conflict));
        }
        if group.is_empty() {
            return;
        }
        let mut changes = std::collections::BTreeMap::new();
        let mut replies = Vec::new();
        for (batch, reply) in group {
            changes.extend(batch.changes);
            replies.push(reply);
        }
        let written = self.state.write(changes.into_iter().collect());
        let result = written.and_then(|revision| self.remember().map(|()| revision));
        if result.is_err() {
            self.epochs.now += 1;
        }
        for reply in replies {
            let _ = reply.send(match &result {
                Ok(revision) => Ok(*revision),
                // Whether it was written after all, the next refresh tells.
                Err(StoreError::Conflict) => Err(StoreError::Conflict),
                Err(error) => Err(StoreError::Remote(error.to_string())),
            });
        }
    }

    fn remember(&mut self) -> Result<(), StoreError> {
        match &mut self.anchor {
            Some(anchor) => anchor.write(&self.state.mark()),
            None => Ok(()),
        }
    }

    fn refresh(&mut self) -> Result<Refreshed, StoreError> {
        match self.state.read_news()? {
            News::Replaced => return Ok(Refreshed::Replaced),
            News::None if self.epochs.now == self.epochs.told => return Ok(Refreshed::Unchanged),
            News::None => {}
            News::Changes => self.remember()?,
        }
        self.epochs.now += 1;
        self.epochs.told = self.epochs.now;
        Ok(Refreshed::Changed {
            epoch: self.epochs.now,
            content: self.state.content(),
        })
    }
}
