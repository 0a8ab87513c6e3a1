//! Serves what the node's tools measure, and whether they are well, over HTTP.

mod health;
mod page;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context;
use clap::Parser;
use common::{harness, settings::LogOptions, state};
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use crate::health::Health;

const NAME: &str = "serve-metrics";

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Serves over HTTP, as kube-proxy does: /metrics, all that the node's tools write into the state directory \
             (*.prom); /healthz and /livez, whether those that --watch names are well. Metrics have to be asked for by GET, \
             and nothing can be changed.",
    after_help = "Example:\n  serve-metrics --watch sync-cidrs &\n  curl localhost:10266/healthz"
)]
struct Cli {
    // Beside the ports of Kubernetes' own programs (10248 to 10259).
    /// Where
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:10266")]
    listen: SocketAddr,
    /// A tool that renews TOOL.prom as long as it is well; may be repeated
    #[arg(long, value_name = "TOOL")]
    watch: Vec<String>,
}

/// What is asked and not answered ends: nobody can hold a connection for longer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

fn main() -> ExitCode {
    let cli: Cli = harness::parse();
    harness::init_log(NAME, &LogOptions::default(), "");
    let health = Health::new(cli.watch, SystemTime::now());
    harness::end(NAME, harness::block_on_network(serve(cli.listen, health)).map_err(anyhow::Error::from).flatten())
}

async fn serve(listen: SocketAddr, health: Health) -> anyhow::Result<()> {
    let listener = listener(listen).with_context(|| format!("cannot listen on {listen}"))?;
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many connections: some will end.
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        let health = health.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| std::future::ready(answer(&request, &health)));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            let connection = http.serve_connection(TokioIo::new(stream), answer);
            // Whoever asks and goes away is no error of ours.
            let _ = tokio::time::timeout(PATIENCE, connection).await;
        });
    }
}

/// An unspecified IPv6 address is both families, as for kube-proxy: whatever `net.ipv6.bindv6only` says, and on a node that has
/// no IPv6 at all.
fn listener(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = match Socket::new(Domain::for_address(listen), Type::STREAM, None) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && listen.ip() == Ipv6Addr::UNSPECIFIED => {
            return listener((Ipv4Addr::UNSPECIFIED, listen.port()).into());
        }
        socket => socket?,
    };
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

fn answer(request: &Request<Incoming>, health: &Health) -> Result<Response<Full<Bytes>>, http::Error> {
    let answer = |status, kind, text: String| {
        Response::builder().status(status).header(CONTENT_TYPE, kind).body(Full::new(Bytes::from(text)))
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET it\n".to_owned());
    }
    let directory: &Path = &state::directory();
    match request.uri().path() {
        "/metrics" => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page::metrics(directory)),
        "/healthz" | "/livez" => {
            let (well, text) = health.verdict(directory, SystemTime::now());
            let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            answer(status, "application/json", format!("{text}\n"))
        }
        _ => answer(StatusCode::NOT_FOUND, "text/plain", "/metrics, /healthz and /livez are here\n".to_owned()),
    }
}
