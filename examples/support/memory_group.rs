//! A memory control group: processes that together may use so much memory, where this machine lets us make one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::proc::wait_until;

/// Where a group is made and what the file of its limit is called, in versions 1 and 2 of control groups.
const PLACES: [(&str, &str); 3] = [
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/unified", "memory.max"),
];

/// Removed when dropped; what is in it has to be gone by then.
#[derive(Debug)]
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// A group of that many bytes; why there is none where there can't be.
    pub fn new(bytes: u64) -> Result<Self, String> {
        let mut why = String::new();
        for (place, limit) in PLACES {
            let path = Path::new(place).join(format!("tine-faults-{}", std::process::id()));
            let made = fs::create_dir(&path).map(|()| Self(path.clone()));
            // Without a controller the file is not there.
            let limit = path.join(limit);
            match made.and_then(|group| fs::write(&limit, bytes.to_string()).map(|()| group)) {
                Ok(group) => return Ok(group),
                Err(error) => why.push_str(&format!("; {}: {error}", path.display())),
            }
        }
        Err(format!("no memory control group can be made{why}"))
    }

    /// What these processes use from now on counts, and what their children do.
    pub fn take(&self, pids: &[i32]) -> std::io::Result<()> {
        pids.iter().try_for_each(|pid| fs::write(self.0.join("cgroup.procs"), pid.to_string()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        wait_until(Duration::from_secs(5), || fs::remove_dir(&self.0).is_ok());
    }
}
