//! actix-web answering JSON-RPC 2.0 in the body of a POST.

use std::error::Error;

use actix_web::{App, HttpResponse, HttpServer, rt, web};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Params and id are checked to be JSON and kept as they were written, which is the least that a server can do with them.
#[derive(Deserialize)]
struct Request<'a> {
    jsonrpc: &'a str,
    method: &'a str,
    #[serde(borrow)]
    params: &'a RawValue,
    #[serde(borrow)]
    id: &'a RawValue,
}

#[derive(Serialize)]
struct Answer<'a> {
    jsonrpc: &'a str,
    result: &'a RawValue,
    id: &'a RawValue,
}

async fn answer(body: web::Bytes) -> HttpResponse {
    let request: Request<'_> = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return HttpResponse::BadRequest().body(error.to_string()),
    };
    if (request.jsonrpc, request.method) != ("2.0", "ping") {
        return HttpResponse::NotFound().finish();
    }
    match serde_json::to_vec(&Answer { jsonrpc: "2.0", result: request.params, id: request.id }) {
        Ok(answer) => HttpResponse::Ok().content_type("application/json").body(answer),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

/// Serves for ever with one worker: the benchmark gives it one core.
pub fn serve() -> Result<(), Box<dyn Error>> {
    rt::System::new().block_on(async {
        let server = HttpServer::new(|| App::new().route("/", web::post().to(answer)));
        let server = server.workers(1).bind("127.0.0.1:0")?;
        for address in server.addrs() {
            println!("{address}");
        }
        Ok(server.run().await?)
    })
}
