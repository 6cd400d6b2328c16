//! Policies: values in, decision out. Nothing here knows of clocks, descriptors or processes.

pub(crate) mod balance;
pub(crate) mod escrow;
pub(crate) mod leftovers;
pub(crate) mod quarantine;
pub(crate) mod restart;
pub(crate) mod shares;
pub(crate) mod signs_of_life;
pub(crate) mod state;
