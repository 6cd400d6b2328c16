//! tarpc with JSON over TCP.

use std::error::Error;
use std::future;

use futures::StreamExt;
use tarpc::context::Context;
use tarpc::serde_transport::tcp;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Json;

#[tarpc::service]
trait Peer {
    async fn ping(params: String) -> String;
}

#[derive(Clone)]
struct Pong;

impl Peer for Pong {
    async fn ping(self, _: Context, params: String) -> String {
        params
    }
}

/// Serves for ever, on one thread: the benchmark gives it one core.
pub fn serve() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut incoming = tcp::listen("127.0.0.1:0", Json::default).await?;
        println!("{}", incoming.local_addr());
        while let Some(connection) = incoming.next().await {
            let transport = connection?;
            transport.get_ref().set_nodelay(true)?;
            let calls = BaseChannel::with_defaults(transport).execute(Pong.serve());
            tokio::spawn(calls.for_each(|call| {
                tokio::spawn(call);
                future::ready(())
            }));
        }
        Ok(())
    })
}
