//! JSON-RPC: over HTTP against servers that speak nothing else, and in the native framing against the native envelope.

use tine::BoxError;
use tine::load::{Fixed, Native};

use super::Bench;
use super::ping::{compared, one_process};
use super::report::{Figure, Wanted};
use super::support::cores::Place;
use super::support::drive::{self, Shape, by_turns};
use super::support::framed;
use super::support::peers::{self, Peer};
use super::support::wrk::Wrk;

/// A `ping` and its answer.
const CALL: &str = r#"{"jsonrpc":"2.0","method":"ping","params":["ireader 0"],"id":1}"#;
const ANSWER: &str = r#"{"jsonrpc":"2.0","result":["ireader 0"],"id":1}"#;

/// The params of it.
const PARAMS: &str = r#"["ireader 0"]"#;

const CONNECTIONS: usize = 64;

/// A server that never looks at what it is sent.
pub(crate) fn against_nginx(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let Some((peer, _folder)) = peers::nginx(ANSWER, &bench.cores, Place::Server)? else {
        return Ok(Vec::new());
    };
    against(bench, &peer, Wanted::AtLeast(1.0), "nginx")
}

/// A server that does the same work.
pub(crate) fn against_actix(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let Some(program) = peers::rust_peers(false)? else { return Ok(Vec::new()) };
    let Some(peer) = peers::rust(&program, "actix-web", &bench.cores, Place::Server)? else {
        return Ok(Vec::new());
    };
    against(bench, &peer, Wanted::AtLeast(1.25), "actix-web")
}

fn against(bench: &Bench, peer: &Peer, wanted: Wanted, name: &str) -> Result<Vec<Figure>, BoxError> {
    let Some(wrk) = Wrk::post(CALL, ANSWER, CONNECTIONS)? else { return Ok(Vec::new()) };
    let service = one_process(bench)?;
    let pairs = by_turns(
        bench.lengths,
        || wrk.run(service.address(), service.workers(), bench.lengths),
        || wrk.run(&peer.address, &[peer.process.pid()], bench.lengths),
    )?;
    Ok(vec![compared(&pairs, wanted, ["tine", name])?])
}

/// One call at a time, and 16 deep, where the envelope is a larger part of all that is done.
pub(crate) fn against_native(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let service = one_process(bench)?;
    let native = Native::new("ping", Some(PARAMS))?;
    // Answers to calls with ids may come in any order; these are all alike.
    let json_rpc = Fixed::new(framed(CALL), framed(ANSWER));
    let (to, pids) = (service.address(), service.workers());
    let compare = |pipeline, wanted| {
        let shape = Shape { connections: CONNECTIONS, pipeline };
        let pairs = by_turns(
            bench.lengths,
            || drive::run(to, pids, shape, bench.lengths, &json_rpc),
            || drive::run(to, pids, shape, bench.lengths, &native),
        )?;
        let both =
            if pipeline == 1 { ["JSON-RPC", "native"] } else { ["JSON-RPC pipelined", "native pipelined"] };
        compared(&pairs, wanted, both)
    };
    Ok(vec![compare(1, Wanted::AtLeast(0.95))?, compare(16, Wanted::ForTheRecord)?])
}
