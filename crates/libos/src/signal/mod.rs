//! Signals.

/// A thread's signal state.
#[derive(Default)]
pub struct ThreadSignals {}
