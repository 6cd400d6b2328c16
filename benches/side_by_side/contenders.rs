//! Who takes part, how each is started and what it is spoken to.

use std::any::Any;
use std::path::PathBuf;

use tine::BoxError;
use tine::load::{Fixed, Native};

use super::exchanges::Tarpc;
use super::support::children::Own;
use super::support::cores::{Cores, Place};
use super::support::drive::{self, Lengths, Run, Shape};
use super::support::http::Http;
use super::support::peers::{self, Peer};
use super::support::service::{self, Service};
use super::support::{PING_PARAMS, ping_frame, process};

type Start = Box<dyn Fn(&Cores) -> Result<Option<Running>, BoxError>>;

/// A server that takes part.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// None if this machine doesn't have it.
    pub(crate) start: Start,
}

/// A server that runs, until it is dropped.
pub(crate) struct Running {
    address: String,
    /// The processes that serve.
    pids: Vec<i32>,
    speaks: Speaks,
    _owner: Box<dyn Any>,
}

#[derive(Clone, Copy)]
enum Speaks {
    Native,
    /// Gives back what it gets.
    Echo,
    Redis,
    Http,
    Tarpc,
}

impl Running {
    fn new(peer: Peer, speaks: Speaks) -> Self {
        let (address, pids) = (peer.address.clone(), vec![peer.process.pid()]);
        Self { address, pids, speaks, _owner: Box::new(peer) }
    }

    /// Gives it its load.
    pub(crate) fn drive(&self, shape: Shape, lengths: Lengths) -> Result<Run, BoxError> {
        let (to, pids) = (&self.address, &self.pids);
        match self.speaks {
            Speaks::Native => drive::run(to, pids, shape, lengths, &Native::new("ping", Some(PING_PARAMS))?),
            Speaks::Echo => drive::run(to, pids, shape, lengths, &Fixed::new(ping_frame(), ping_frame())),
            Speaks::Redis => {
                let ping = Fixed::new(b"*1\r\n$4\r\nPING\r\n".to_vec(), b"+PONG\r\n".to_vec());
                drive::run(to, pids, shape, lengths, &ping)
            }
            Speaks::Http => drive::run(to, pids, shape, lengths, &Http::get(peers::NGINX_BODY)),
            Speaks::Tarpc => drive::run(to, pids, shape, lengths, &Tarpc::ping(PING_PARAMS)),
        }
    }
}

/// Everybody, in the order of the tables. The first is the limit, which the others are compared with.
pub(crate) fn contenders(rust_peers: Option<PathBuf>) -> Vec<Contender> {
    let mut all = vec![
        contender("echo loop", "one epoll thread, bytes go back as they came: the limit", |cores| {
            Ok(Some(Running::new(Own::Echo.start(cores, Place::Server)?, Speaks::Echo)))
        }),
        contender("tine", "one process, 8 threads, every limit and deadline on", |cores| {
            let service = Service::start(&service::tine(), 1, "", cores, Place::Server)?;
            Ok(Some(Running {
                address: service.address().to_owned(),
                pids: service.workers().to_vec(),
                speaks: Speaks::Native,
                _owner: Box::new(service),
            }))
        }),
        contender("thread per connection", "Rust, blocking, JSON by serde_json, nothing bounded", |cores| {
            let peer = Own::ThreadPerConnection.start(cores, Place::Server)?;
            Ok(Some(Running::new(peer, Speaks::Native)))
        }),
        contender(
            "Python pre-fork",
            "plain Python, one worker, a thread for each connection, JSON",
            |cores| {
                let Some(peer) = peers::prefork(1, cores, Place::Server)? else { return Ok(None) };
                // The workers serve, and their parent waits.
                let pids = process::children(peer.process.pid())?;
                Ok(Some(Running { pids, ..Running::new(peer, Speaks::Native) }))
            },
        ),
        contender("Redis", "`PING`; no JSON", |cores| {
            Ok(peers::redis(cores, Place::Server)?.map(|peer| Running::new(peer, Speaks::Redis)))
        }),
        contender("nginx", "HTTP GET, the same 200 always; no JSON is read", |cores| {
            Ok(peers::nginx(peers::NGINX_BODY, cores, Place::Server)?.map(|(peer, folder)| {
                let (address, pids) = (peer.address.clone(), vec![peer.process.pid()]);
                Running { address, pids, speaks: Speaks::Http, _owner: Box::new((peer, folder)) }
            }))
        }),
    ];
    if let Some(program) = rust_peers {
        all.push(contender("tarpc", "Rust, tokio on one thread, JSON over TCP", move |cores| {
            let peer = peers::rust(&program, "tarpc", cores, Place::Server)?;
            Ok(peer.map(|peer| Running::new(peer, Speaks::Tarpc)))
        }));
    }
    all
}

fn contender(
    name: &'static str,
    what: &'static str,
    start: impl Fn(&Cores) -> Result<Option<Running>, BoxError> + 'static,
) -> Contender {
    Contender { name, what, start: Box::new(start) }
}
