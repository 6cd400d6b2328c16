//! Where a config's text comes from: a file, a pipe, or nothing at all.
//!
//! `cli` calls this first and hands the result to `check`; the supervisor reads the text anew for a reload. What the
//! text means is not known here.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::ConfigError;

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "config.toml";
/// What the configuration is called where there is no file.
pub(crate) const DEFAULTS: &str = "defaults";
/// Far above any config; what is larger is some other file, named by mistake.
const LARGEST_FILE: u64 = 1 << 20;

/// A config's text and what its errors call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The path as it was given, or [`DEFAULTS`].
    pub(crate) name: String,
    /// TOML, or what is meant to be.
    pub(crate) text: String,
}

/// Reads the named file, which must exist; without a name `config.toml` in the working directory if it is
/// there, and otherwise nothing, which means the defaults.
pub(crate) fn read_source(path: Option<&Path>) -> Result<Source, ConfigError> {
    read(path, Again(false))
}

/// As [`read_source`], for a process that must not wait: only a regular file is read.
pub(crate) fn read_source_again(path: Option<&Path>) -> Result<Source, ConfigError> {
    read(path, Again(true))
}

/// Whether the text has been read before. What came through a pipe can't be had twice, and to open one may wait for ever.
#[derive(Clone, Copy)]
struct Again(bool);

fn read(path: Option<&Path>, again: Again) -> Result<Source, ConfigError> {
    let file = path.unwrap_or(Path::new(DEFAULT_FILE));
    let name = file.display().to_string();
    match read_text(file, again) {
        Ok(text) => Ok(Source { name, text }),
        Err(Unreadable::Io(error)) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
            Ok(Source { name: DEFAULTS.to_owned(), text: String::new() })
        }
        Err(why) => Err(ConfigError::about_file(&name, &why.sentence())),
    }
}

enum Unreadable {
    Io(io::Error),
    NoFile(&'static str),
    Pipe,
    TooLarge,
    NotUtf8 { line: usize },
}

impl Unreadable {
    fn sentence(&self) -> String {
        match self {
            Unreadable::Io(error) => format!("expected a config file that can be read, found: {error}"),
            Unreadable::NoFile(kind) => format!("expected a config file or a pipe, found {kind}"),
            Unreadable::Pipe => {
                "expected a config file, found a pipe, which can't be read again; restart the service"
                    .to_owned()
            }
            Unreadable::TooLarge => "expected a config file of at most 1MiB, found a larger one".to_owned(),
            Unreadable::NotUtf8 { line } => {
                format!("expected text in UTF-8, found other bytes in line {line}; save the file as UTF-8")
            }
        }
    }
}

fn read_text(path: &Path, Again(again): Again) -> Result<String, Unreadable> {
    // Looked at before it is opened: opening a device can do something, opening a socket fails obscurely.
    let kind = fs::metadata(path).map_err(Unreadable::Io)?.file_type();
    if kind.is_dir() {
        return Err(Unreadable::NoFile("a directory"));
    }
    if !kind.is_file() && !kind.is_fifo() {
        return Err(Unreadable::NoFile("a device or a socket"));
    }
    if again && kind.is_fifo() {
        return Err(Unreadable::Pipe);
    }
    let mut bytes = Vec::new();
    let mut open = File::options();
    open.read(true);
    if again {
        // Another file may have come in its place since it was looked at.
        open.custom_flags(nix::libc::O_NONBLOCK);
    }
    let file = open.open(path).map_err(Unreadable::Io)?;
    if again && !file.metadata().map_err(Unreadable::Io)?.is_file() {
        return Err(Unreadable::Pipe);
    }
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(Unreadable::Io)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(Unreadable::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        Unreadable::NotUtf8 { line: 1 + good.filter(|&&byte| byte == b'\n').count() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;

    /// A file of its own in the system's directory for them, removed at the end.
    struct TemporaryFile(PathBuf);

    impl TemporaryFile {
        fn with(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("tine-config-{}-{name}", std::process::id()));
            let mut file = File::create(&path).expect("a temporary file");
            file.write_all(bytes).expect("a written file");
            Self(path)
        }

        fn error(&self) -> String {
            let error = read_source(Some(&self.0)).expect_err("unreadable").to_string();
            error.strip_prefix(&format!("{}: ", self.0.display())).expect("the file's name").to_owned()
        }
    }

    impl Drop for TemporaryFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_file_is_read_under_the_name_it_was_given() {
        let file = TemporaryFile::with("good", b"threads = 3\n");
        let source = read_source(Some(&file.0)).expect("readable");
        assert_eq!(source.name.as_bytes(), file.0.as_os_str().as_bytes());
        assert_eq!(source.text, "threads = 3\n");
    }

    #[test]
    fn a_file_that_can_not_be_a_config_is_told_so() {
        assert_eq!(
            TemporaryFile::with("bytes", b"a = 1\nb = '\xff'\n").error(),
            "expected text in UTF-8, found other bytes in line 2; save the file as UTF-8"
        );
        let large = vec![b'\n'; (1 << 20) + 1];
        assert_eq!(
            TemporaryFile::with("large", &large).error(),
            "expected a config file of at most 1MiB, found a larger one"
        );
        let error = |path: &str| read_source(Some(Path::new(path))).expect_err(path).to_string();
        assert_eq!(error("/"), "/: expected a config file or a pipe, found a directory");
        assert_eq!(
            error("/dev/zero"),
            "/dev/zero: expected a config file or a pipe, found a device or a socket"
        );
        assert_eq!(
            error("/no/such/file"),
            "/no/such/file: expected a config file that can be read, \
         found: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(b"threads = 4").expect("room in the pipe");
        drop(writer);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        assert_eq!(read_source(Some(Path::new(&path))).expect("readable").text, "threads = 4");
    }
}
