//! Policies: values in, decision out. Nothing here knows of clocks, descriptors or processes.
//!
//! The loop knows the time and looks at the world; a policy decides; the loop does what was decided. What happens reaches a policy by
//! methods of its own. What only time brings reaches it by [`Policy`], which is the same for all, so that the loop has one timer queue
//! ([`timers`]) and no moment of a policy can be forgotten there.
//!
//! ```text
//! state          which processes run; restart (when one is tried again) is part of it
//! quarantine     which methods are refused because they take workers down
//! signs_of_life  which workers are asked whether they live, and killed for their silence
//! leftovers      what handlers have started and left behind
//! reaping        when children that have ended are reaped
//! rebinding      when a lost listener is tried again
//! escrow         whose each connection is, and who goes on with it
//! shares         how many connections each worker may hold
//! balance        who has too many
//! ```

pub(crate) mod balance;
pub(crate) mod escrow;
pub(crate) mod leftovers;
pub(crate) mod quarantine;
pub(crate) mod reaping;
pub(crate) mod rebinding;
pub(crate) mod restart;
pub(crate) mod shares;
pub(crate) mod signs_of_life;
pub(crate) mod state;
pub(crate) mod timers;

use std::time::Instant;

/// A policy that has something to decide when a moment has come, although nothing has happened.
pub(crate) trait Policy {
    /// What the loop has looked at, for the policy to decide by.
    type Seen<'a>;
    /// What the loop must do.
    type Decision;

    /// When the policy has something to decide. None while it waits for no moment.
    fn next_due(&self) -> Option<Instant>;

    /// Decides what follows at `now`. The loop may ask sooner than at [`next_due`](Self::next_due).
    fn due(&mut self, now: Instant, seen: Self::Seen<'_>) -> Self::Decision;
}
