//! What a program is called, and which version it is: for `rpc.discover`, `--version`, the log and the titles in `ps`.

use std::fmt;
use std::path::Path;

/// This library's version.
pub(crate) const TINE: &str = env!("CARGO_PKG_VERSION");

/// What the kernel appends to the path of a program whose file was replaced or removed since it was started.
const GONE: &str = " (deleted)";

/// Name and version of the service. A program that doesn't say has its file's name, and no version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) title: String,
    pub(crate) version: Option<String>,
}

impl Default for About {
    fn default() -> About {
        let title = std::env::current_exe().ok().and_then(|path| file_name(&path));
        About { title: title.unwrap_or_else(|| "tine".to_owned()), version: None }
    }
}

/// What `--version` prints: the program's own name and version, and tine's in brackets. The daemon's own is tine's.
impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        match self.version.as_deref() {
            Some(TINE) if self.title == "tine" => write!(f, " {TINE}"),
            Some(version) => write!(f, " {version} (tine {TINE})"),
            None => write!(f, " (tine {TINE})"),
        }
    }
}

fn file_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    Some(name.strip_suffix(GONE).unwrap_or(&name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_tines_beside_it() {
        for (title, version, shown) in [
            ("orders", Some("1.4"), format!("orders 1.4 (tine {TINE})")),
            ("orders", None, format!("orders (tine {TINE})")),
            ("orders", Some(TINE), format!("orders {TINE} (tine {TINE})")),
            ("tine", Some("other"), format!("tine other (tine {TINE})")),
            ("tine", Some(TINE), format!("tine {TINE}")),
        ] {
            let about = About { title: title.to_owned(), version: version.map(str::to_owned) };
            assert_eq!(about.to_string(), shown);
        }
    }

    #[test]
    fn a_program_is_called_as_its_file() {
        for (path, name) in [
            ("/opt/orders", Some("orders")),
            ("/opt/orders-1.4", Some("orders-1.4")),
            // What runs on after a deployment.
            ("/opt/orders (deleted)", Some("orders")),
            ("/", None),
        ] {
            assert_eq!(file_name(Path::new(path)).as_deref(), name, "{path}");
        }
    }
}
