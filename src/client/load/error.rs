//! Why a load could not be run at all. What goes wrong with single calls is counted in the report instead.

use std::{error, fmt, io};

/// Why there is no report.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The address is none that could be connected to; the text says why.
    Address(String),
    /// A setting of the load is out of its range; the text names it, what was expected and what was found.
    Setting(String),
    /// Params, or an expected result, that are no JSON; the text says where.
    Params(String),
    /// This process may not open that many connections.
    Descriptors {
        /// The connections asked for.
        connections: usize,
        /// The descriptors it may have open.
        most: u64,
    },
    /// Nobody takes connections at `to`.
    NoServer {
        /// The address as it was understood.
        to: String,
        /// What the system said.
        source: io::Error,
    },
    /// Only some of the connections could be made, so the load would not be the one asked for.
    Connections {
        /// How many there were.
        made: usize,
        /// How many there should have been.
        wanted: usize,
        /// What the system said about one of the others.
        source: io::Error,
    },
    /// The system failed in a way that none of the others describes.
    Io(io::Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(why) | Self::Setting(why) | Self::Params(why) => f.write_str(why),
            Self::Descriptors { connections, most } => write!(
                f,
                "{connections} connections need as many descriptors and a few more, and this process may have \
                 {most} open: ask for fewer connections, or raise the limit (ulimit -n)"
            ),
            Self::NoServer { to, source } => write!(
                f,
                "no server takes connections at {to} ({source}): start the server, or give the address where it \
                 listens"
            ),
            Self::Connections { made, wanted, source } => write!(
                f,
                "only {made} of {wanted} connections could be made ({source}): ask for fewer, or look at the \
                 server's limits"
            ),
            Self::Io(error) => write!(f, "the system refused what a load needs: {error}"),
        }
    }
}

impl error::Error for LoadError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::NoServer { source, .. } | Self::Connections { source, .. } | Self::Io(source) => {
                Some(source)
            }
            Self::Address(_) | Self::Setting(_) | Self::Params(_) | Self::Descriptors { .. } => None,
        }
    }
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<nix::Error> for LoadError {
    fn from(errno: nix::Error) -> Self {
        Self::Io(errno.into())
    }
}
