//! Children: the supervisor's records of templates and workers, the channels to them, and what follows from their ends.

pub(in crate::supervisor) mod addresses;
pub(in crate::supervisor) mod blame;
pub(in crate::supervisor) mod checks;
pub(in crate::supervisor) mod ends;
pub(in crate::supervisor) mod orphans;
pub(in crate::supervisor) mod records;
pub(in crate::supervisor) mod regions;
pub(in crate::supervisor) mod tell;
pub(in crate::supervisor) mod template_channel;
pub(in crate::supervisor) mod worker_channels;
