//! What the fault command, the soak and the fault tests share: a load that checks every answer, services of the real
//! program, and a look at their processes. None of it is in the shipped program.

#![allow(dead_code, unreachable_pub)] // each of them uses its part

pub mod load;
pub mod memory_group;
pub mod plain;
pub mod proc;
pub mod service;
pub mod stalls;
